#include "vmm/snapshot/snapshot_disks.hpp"

#include <algorithm>
#include <set>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "crypto/random.hpp"
#include "vmm/home/file_copy.hpp"

namespace coffer::vmm {

namespace {

// A name beside the disk for what is to take its place.
std::filesystem::path waiting_beside(std::filesystem::path const& disk, Uuid const& id) {
    return disk.parent_path() / fmt::format(".{}.{}.revert", disk.filename().native(), id.to_string());
}

// `to` is made anew and durable, but for its name.
Result<void> copy_disk_file(std::filesystem::path const& from, std::filesystem::path const& to,
                            ImageOptions const& options) {
    auto source = TRY(open_file(from, O_RDONLY));
    struct stat info {};
    if (::fstat(source.get(), &info) != 0) return errno_error(errno, fmt::format("cannot look at {}", from.native()));
    auto total = static_cast<uint64_t>(info.st_size);
    auto target = TRY(open_file(to, O_RDWR | O_CREAT | O_TRUNC));
    return copy_file_content(source.get(), from, target.get(), to, [&](uint64_t done) -> Result<void> {
        if (options.progress) options.progress(done, total);
        if (options.cancelled && options.cancelled())
            return make_error(ErrorCode::Cancelled, "copying {} was given up", from.native());
        return {};
    });
}

// In the index, and in all that it says of snapshots, what was at `from` is at `to`.
void replace_layer(SnapshotIndex& index, DiskLayer const& from) {
    std::erase_if(index.disks.layers, [&](auto const& layer) { return layer.id == from.id; });
    for (auto& layer : index.disks.layers)
        if (layer.parent == from.id) layer.parent = from.parent;
    for (auto& record : index.snapshots)
        for (auto& top : record.layers)
            if (top.layer == from.id) top.layer = from.parent;
    if (index.disks.top(from.disk) == from.id) index.disks.set_top(from.disk, from.parent);
}

} // namespace

std::vector<DiskConfig> written_disks(VmConfig const& config) {
    std::vector<DiskConfig> disks;
    for (auto const& disk : config.disks)
        if (!disk.read_only) disks.push_back(disk);
    return disks;
}

std::string disk_copy_of(SnapshotRecord const& record, uint32_t number) {
    return fmt::format("{}{}-disk-{}", k_disk_copy_prefix, record.id.to_string(), number);
}

// False where the file system does not share blocks between the disks and the home.
Result<bool> SnapshotDisks::share(SnapshotRecord& record, std::vector<DiskConfig> const& disks) {
    for (auto const& disk : disks) {
        auto const to = folder() / disk_copy_of(record, record.disks);
        auto const from = disk.file(folder());
        auto source = TRY(open_file(from, O_RDONLY));
        auto target = TRY(open_file(to, O_RDWR | O_CREAT | O_TRUNC));
        m_made.push_back(to);
        if (!TRY(share_file_content(source.get(), target.get(), to))) return false;
        ++record.disks;
    }
    return true;
}

Result<uint64_t> SnapshotDisks::frozen_size(DiskConfig const& disk) {
    if (m_live) {
        auto& image = m_live->image(disk.path);
        TRY(image.flush());
        return image.size();
    }
    // What a VM left that was killed may not be durable yet.
    auto image = TRY(open_layered(m_home, disk));
    TRY(image->flush());
    return image->size();
}

Result<Uuid> SnapshotDisks::prepare(DiskConfig const& disk, uint64_t size) {
    auto const id = TRY(crypto::random_uuid());
    m_pending.push_back({disk.path, TRY(OverlayFile::create(overlay_path(folder(), id), {id, size}))});
    return id;
}

Result<void> SnapshotDisks::keep(SnapshotRecord& record, SnapshotIndex& next) {
    auto const disks = written_disks(m_home.config());
    if (disks.empty()) return {};
    if (!next.disks.layers.empty() || !TRY(share(record, disks))) {
        forget();
        record.disks = 0;
        for (auto const& disk : disks) {
            auto const size = frozen_size(disk);
            if (!size) return Error(size.error()).with_context("disk");
            auto const id = TRY(prepare(disk, *size));
            record.layers.push_back({disk.path, next.disks.top(disk.path)});
            next.disks.layers.push_back({id, record.layers.back().layer, disk.path});
            next.disks.set_top(disk.path, id);
            ++record.disks;
        }
    }
    return sync_folder(folder());
}

Result<void> SnapshotDisks::fill_from(std::filesystem::path const& copy, DiskConfig const& disk, SnapshotIndex& next,
                                      ImageOptions const& options) {
    auto const source = TRY(open_file(copy, O_RDONLY));
    uint64_t const size = TRY(frozen_size(disk));
    auto const id = TRY(prepare(disk, size));
    auto& overlay = *m_pending.back().overlay;
    ByteVector buffer(overlay_spec::k_cluster_size);
    auto put = [&](uint64_t at, uint64_t count) -> Result<void> {
        MutBytes const piece = MutBytes(buffer).first(count);
        TRY(pread_all(source.get(), piece, at, copy));
        if (options.progress) options.progress(at, size);
        return overlay.write(at, piece);
    };
    TRY(for_each_data_piece(source.get(), copy, size, overlay_spec::k_cluster_size, put));
    for (uint64_t cluster = 0; cluster < overlay.clusters(); ++cluster) overlay.hold(cluster);
    TRY(overlay.flush());
    next.disks.layers.push_back({id, Uuid(), disk.path});
    next.disks.set_top(disk.path, id);
    return {};
}

Result<void> SnapshotDisks::go_back(SnapshotRecord const& record, VmConfig const& config, SnapshotIndex& next,
                                    TogetherChange& change, ImageOptions const& options) {
    auto const disks = written_disks(config);
    for (uint32_t n = 0; n < record.disks; ++n) {
        auto const& disk = disks[n];
        if (!record.layers.empty()) {
            auto const& frozen = record.layers[n].layer;
            auto const below = TRY(open_layered(m_home, disk, next.disks, frozen));
            auto const id = TRY(prepare(disk, below->size()));
            next.disks.layers.push_back({id, frozen, disk.path});
            next.disks.set_top(disk.path, id);
        } else if (auto copy = folder() / disk_copy_of(record, n); next.disks.any_of(disk.path)) {
            // Other snapshots are based on the disk's own file.
            TRY(fill_from(copy, disk, next, options));
        } else {
            auto const own = disk.file(folder());
            m_made.push_back(waiting_beside(own, record.id));
            TRY(copy_disk_file(copy, m_made.back(), options));
            change.moves.push_back({m_made.back().native(), own.native()});
        }
    }
    return m_pending.empty() ? Result<void>() : sync_folder(folder());
}

void SnapshotDisks::adopt() noexcept {
    for (auto& pending : m_pending)
        if (m_live) m_live->image(pending.disk).push(std::move(pending.overlay));
    m_pending.clear();
    m_made.clear();
}

void SnapshotDisks::forget() noexcept {
    for (auto const& pending : m_pending) ::unlink(overlay_path(folder(), pending.overlay->identity().id).c_str());
    for (auto const& path : m_made) ::unlink(path.c_str());
    m_pending.clear();
    m_made.clear();
}

void SnapshotDisks::stop_writing() noexcept {
    if (!m_live) return;
    for (auto const& disk : written_disks(m_home.config())) m_live->image(disk.path).stop_writing();
}

Result<void> SnapshotDisks::check(SnapshotRecord const& record, VmConfig const& config,
                                  SnapshotIndex const& index) const {
    auto const disks = written_disks(config);
    bool fits = disks.size() == record.disks && (record.layers.empty() || record.layers.size() == record.disks);
    for (size_t n = 0; fits && n < record.layers.size(); ++n) fits = record.layers[n].disk == disks[n].path;
    if (!fits)
        return make_error(ErrorCode::Integrity, "the snapshot '{}' has {} disks, and its configuration {}", record.tag,
                          record.disks, disks.size());
    auto there = [&](std::filesystem::path const& path) -> Result<void> {
        if (std::filesystem::exists(path)) return {};
        return make_error(ErrorCode::Integrity, "{} is missing, and the snapshot '{}' needs it", path.native(),
                          record.tag);
    };
    for (uint32_t n = 0; record.layers.empty() && n < record.disks; ++n) TRY(there(folder() / disk_copy_of(record, n)));
    for (auto const& top : record.layers) {
        auto const ids = TRY(index.disks.chain(top.disk, top.layer));
        for (auto const& id : ids) TRY(there(overlay_path(folder(), id)));
    }
    return {};
}

// What could be done next; of a disk that is gone from the configuration nothing.
std::vector<SnapshotDisks::Step> SnapshotDisks::steps(SnapshotIndex const& index) const {
    std::vector<Step> found;
    auto needed = [&](std::string const& disk, Uuid const& layer) {
        if (index.disks.top(disk) == layer) return true;
        return std::ranges::any_of(index.snapshots, [&](auto const& record) {
            return std::ranges::find(record.layers, DiskTop{disk, layer}) != record.layers.end();
        });
    };
    auto children = [&](std::string const& disk, Uuid const& layer) {
        return std::ranges::count_if(index.disks.layers,
                                     [&](auto const& other) { return other.disk == disk && other.parent == layer; });
    };
    for (auto const& layer : index.disks.layers) {
        if (!needed(layer.disk, layer.id) && children(layer.disk, layer.id) == 0) {
            found.push_back({layer, false});
            continue;
        }
        bool const alone = !needed(layer.disk, layer.parent) && children(layer.disk, layer.parent) == 1;
        auto const disks = written_disks(m_home.config());
        if (!alone || std::ranges::find(disks, layer.disk, &DiskConfig::path) == disks.end()) continue;
        if (m_live) {
            auto const chain = index.disks.chain(layer.disk, index.disks.top(layer.disk));
            if (!chain || std::ranges::find(*chain, layer.id) == chain->end()) continue;
        }
        found.push_back({layer, true});
    }
    return found;
}

Result<void> SnapshotDisks::carry_out(Step const& step, SnapshotIndex& index,
                                      std::function<Result<void>(SnapshotIndex)> const& commit,
                                      ImageOptions const& options) {
    auto next = index;
    replace_layer(next, step.layer);
    auto const path = overlay_path(folder(), step.layer.id);
    if (!step.merge) {
        TRY(commit(next));
    } else {
        auto const disks = written_disks(m_home.config());
        auto const disk = std::ranges::find(disks, step.layer.disk, &DiskConfig::path);
        LayeredFile::Watch const watch{options.progress, options.cancelled};
        auto commit_next = [&] { return commit(next); };
        if (m_live) {
            TRY(m_live->image(step.layer.disk).merge(step.layer.id, commit_next, watch));
        } else {
            auto image = TRY(open_layered(m_home, *disk, index.disks, step.layer.id));
            TRY(image->merge(step.layer.id, commit_next, watch));
        }
    }
    index = std::move(next);
    return remove_file(path);
}

Result<void> SnapshotDisks::tidy(SnapshotIndex index, std::function<Result<void>(SnapshotIndex)> const& commit,
                                 ImageOptions const& options) {
    for (auto next = steps(index); !next.empty(); next = steps(index))
        TRY(carry_out(next.front(), index, commit, options));
    return {};
}

} // namespace coffer::vmm
