#include "vmm/disk/layered_file.hpp"

#include <algorithm>

#include "vmm/disk/disk_seal.hpp"

namespace coffer::vmm {

namespace {
constexpr uint64_t k_cluster = overlay_spec::k_cluster_size;
}

LayeredFile::Piece LayeredFile::piece_at(uint64_t offset, uint64_t size) const noexcept {
    uint64_t const cluster = offset / k_cluster;
    uint64_t const end = std::min((cluster + 1) * k_cluster, this->size());
    Piece piece{cluster, offset, std::min(size, end - offset), false};
    piece.whole = offset == cluster * k_cluster && offset + piece.size == end;
    return piece;
}

OverlayFile* LayeredFile::holder(size_t layers, uint64_t cluster) const noexcept {
    for (size_t layer = layers; layer > 0; --layer)
        if (m_overlays[layer - 1]->holds(cluster)) return m_overlays[layer - 1].get();
    return nullptr;
}

Result<void> LayeredFile::read_through(size_t layers, uint64_t offset, MutBytes to) {
    while (!to.empty()) {
        auto const first = piece_at(offset, to.size());
        auto* const from = holder(layers, first.cluster);
        uint64_t size = first.size;
        while (size < to.size()) {
            auto const next = piece_at(offset + size, to.size() - size);
            if (holder(layers, next.cluster) != from) break;
            size += next.size;
        }
        MutBytes const run = to.first(size);
        TRY(from ? from->read(offset, run) : m_base->read(offset, run));
        to = to.subspan(size);
        offset += size;
    }
    return {};
}

std::vector<TrackedFile*> LayeredFile::files() {
    std::lock_guard lock(m_mutex);
    std::vector<TrackedFile*> files;
    auto add = [&](devices::BlockBackend& file) {
        if (auto* tracked = dynamic_cast<TrackedFile*>(&file)) files.push_back(tracked);
    };
    add(*m_base);
    for (auto const& overlay : m_overlays) add(overlay->file());
    return files;
}

Result<void> LayeredFile::read(uint64_t offset, MutBytes to) {
    std::lock_guard lock(m_mutex);
    return read_through(m_overlays.size(), offset, to);
}

Result<void> LayeredFile::check_writing() const {
    if (!m_stopped) return {};
    return make_error(ErrorCode::Io,
                      "{}: no more is written to this disk, because its home could not be written and what the next "
                      "start finds is not known",
                      m_path.native());
}

Result<void> LayeredFile::take_up(Piece const& piece) {
    auto& top = *m_overlays.back();
    if (piece.whole || top.holds(piece.cluster)) return {};
    uint64_t const begin = piece.cluster * k_cluster;
    MutBytes const cluster = MutBytes(m_buffer).first(std::min(k_cluster, size() - begin));
    TRY(read_through(m_overlays.size() - 1, begin, cluster));
    TRY(top.write(begin, cluster));
    top.hold(piece.cluster);
    return {};
}

void LayeredFile::written(uint64_t cluster) {
    m_overlays.back()->hold(cluster);
    if (m_written) m_written->insert(cluster);
}

Result<void> LayeredFile::write(uint64_t offset, Bytes from) {
    std::lock_guard lock(m_mutex);
    TRY(check_writing());
    if (m_overlays.empty()) return m_base->write(offset, from);
    if (from.empty()) return {};
    // Only the first and the last cluster may be written in part.
    TRY(take_up(piece_at(offset, from.size())));
    uint64_t const last = align_down(offset + from.size() - 1, k_cluster);
    if (last > offset) TRY(take_up(piece_at(last, offset + from.size() - last)));
    TRY(m_overlays.back()->write(offset, from));
    for (uint64_t cluster = offset / k_cluster; cluster <= last / k_cluster; ++cluster) written(cluster);
    return {};
}

Result<void> LayeredFile::flush() {
    std::lock_guard lock(m_mutex);
    TRY(check_writing());
    return m_overlays.empty() ? m_base->flush() : m_overlays.back()->flush();
}

// `must`: a part of a cluster that is not in the uppermost overlay becomes zeros too.
Result<void> LayeredFile::zero(uint64_t offset, uint64_t size, bool must) {
    auto& top = *m_overlays.back();
    while (size > 0) {
        auto const first = piece_at(offset, size);
        uint64_t run = first.size;
        if (first.whole) {
            for (uint64_t next = run; next < size && piece_at(offset + next, size - next).whole; next = run)
                run += piece_at(offset + next, size - next).size;
            TRY(top.write_zeroes(offset, run));
            for (uint64_t at = offset; at < offset + run; at += k_cluster) written(at / k_cluster);
        } else if (must || top.holds(first.cluster)) {
            TRY(take_up(first));
            TRY(top.write_zeroes(offset, run));
            written(first.cluster);
        }
        offset += run;
        size -= run;
    }
    return {};
}

Result<void> LayeredFile::write_zeroes(uint64_t offset, uint64_t size) {
    std::lock_guard lock(m_mutex);
    TRY(check_writing());
    return m_overlays.empty() ? m_base->write_zeroes(offset, size) : zero(offset, size, true);
}

Result<void> LayeredFile::discard(uint64_t offset, uint64_t size) {
    std::lock_guard lock(m_mutex);
    TRY(check_writing());
    return m_overlays.empty() ? m_base->discard(offset, size) : zero(offset, size, false);
}

void LayeredFile::push(std::unique_ptr<OverlayFile> overlay) noexcept {
    COFFER_ASSERT(overlay->identity().size == size());
    std::lock_guard lock(m_mutex);
    COFFER_ASSERT(!m_written);
    m_overlays.push_back(std::move(overlay));
}

Result<void> LayeredFile::merge_cluster(size_t layer, uint64_t cluster, MutBytes buffer) {
    uint64_t const begin = cluster * k_cluster;
    MutBytes const content = buffer.first(std::min(k_cluster, size() - begin));
    TRY(m_overlays[layer]->read(begin, content));
    bool const zeroes = all_zero(content);
    if (layer == 0) return zeroes ? m_base->write_zeroes(begin, content.size()) : m_base->write(begin, content);
    auto& below = *m_overlays[layer - 1];
    TRY(zeroes ? below.write_zeroes(begin, content.size()) : below.write(begin, content));
    below.hold(cluster);
    return {};
}

Result<void> LayeredFile::merge_all(size_t layer, Watch const& watch, MutBytes buffer) {
    constexpr uint64_t k_told = 256; // clusters
    for (uint64_t cluster = 0; cluster < m_overlays[layer]->clusters(); ++cluster) {
        if (cluster % k_told == 0) {
            if (watch.progress) watch.progress(cluster * k_cluster, size());
            if (watch.cancelled && watch.cancelled())
                return make_error(ErrorCode::Cancelled, "merging layers of {} was given up", m_path.native());
        }
        std::lock_guard lock(m_mutex);
        if (m_overlays[layer]->holds(cluster)) TRY(merge_cluster(layer, cluster, buffer));
    }
    return {};
}

Result<void> LayeredFile::merge_written(size_t layer, std::set<uint64_t> const& clusters, MutBytes buffer) {
    for (uint64_t cluster : clusters) {
        std::lock_guard lock(m_mutex);
        TRY(merge_cluster(layer, cluster, buffer));
    }
    return {};
}

// What is below is written by merge() alone.
Result<void> LayeredFile::flush_below(size_t layer) {
    return layer == 0 ? m_base->flush() : m_overlays[layer - 1]->flush();
}

Result<void> LayeredFile::merge(Uuid const& id, std::function<Result<void>()> const& commit, Watch const& watch) {
    constexpr size_t k_few = 16;    // clusters to be merged while nothing is written
    constexpr int k_max_rounds = 8; // where the guest writes faster than this, it waits in the end
    ByteVector buffer(k_cluster);
    auto const found = std::ranges::find(m_overlays, id, [](auto const& overlay) { return overlay->identity().id; });
    COFFER_ASSERT(found != m_overlays.end());
    auto const layer = static_cast<size_t>(found - m_overlays.begin());
    bool const live = layer + 1 == m_overlays.size();
    if (live) {
        std::lock_guard lock(m_mutex);
        m_written.emplace();
    }
    auto merged = [&]() -> Result<void> {
        TRY(merge_all(layer, watch, buffer));
        for (int round = 0; live && round < k_max_rounds; ++round) {
            std::set<uint64_t> again;
            {
                std::lock_guard lock(m_mutex);
                if (m_written->size() <= k_few) break;
                again.swap(*m_written);
            }
            TRY(merge_written(layer, again, buffer));
        }
        // Most of it is on the disk before writes have to wait.
        TRY(flush_below(layer));
        std::lock_guard lock(m_mutex);
        if (live)
            for (uint64_t cluster : *m_written) TRY(merge_cluster(layer, cluster, buffer));
        TRY(flush_below(layer));
        TRY(commit());
        m_overlays.erase(m_overlays.begin() + static_cast<std::ptrdiff_t>(layer));
        m_written.reset();
        return {};
    }();
    if (!merged) {
        std::lock_guard lock(m_mutex);
        m_written.reset();
    }
    return merged;
}

} // namespace coffer::vmm
