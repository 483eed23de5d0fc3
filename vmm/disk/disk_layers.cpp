#include "vmm/disk/disk_layers.hpp"

#include <algorithm>

#include "base/tagged.hpp"
#include "devices/storage/raw_disk.hpp"
#include "vmm/snapshot/snapshot_index.hpp"

namespace coffer::vmm {

DiskLayer const* DiskLayers::find(Uuid const& id) const noexcept {
    auto found = std::ranges::find(layers, id, &DiskLayer::id);
    return found == layers.end() ? nullptr : &*found;
}

bool DiskLayers::any_of(std::string_view disk) const noexcept {
    return std::ranges::find(layers, disk, &DiskLayer::disk) != layers.end();
}

Uuid DiskLayers::top(std::string_view disk) const noexcept {
    auto found = std::ranges::find(tops, disk, &DiskTop::disk);
    return found == tops.end() ? Uuid() : found->layer;
}

size_t DiskLayers::depth(std::string_view disk) const {
    auto const ids = chain(disk, top(disk));
    return ids ? ids->size() : 0;
}

void DiskLayers::set_top(std::string const& disk, Uuid const& layer) {
    std::erase_if(tops, [&](auto const& top) { return top.disk == disk; });
    if (layer != Uuid()) tops.push_back({disk, layer});
}

Result<std::vector<Uuid>> DiskLayers::chain(std::string_view disk, Uuid const& top) const {
    std::vector<Uuid> ids;
    for (Uuid at = top; !at.is_nil();) {
        auto const* layer = find(at);
        if (!layer || layer->disk != disk || ids.size() == layers.size())
            return make_error(ErrorCode::Integrity,
                              "the home's list of snapshots is malformed: disk {} has no layer {}", disk,
                              at.to_string());
        ids.push_back(at);
        at = layer->parent;
    }
    std::ranges::reverse(ids);
    return ids;
}

std::filesystem::path overlay_path(std::filesystem::path const& home, Uuid const& id) {
    return home / fmt::format("{}{}", k_overlay_prefix, id.to_string());
}

Result<DiskLayers> load_disk_layers(HomeSession const& home) {
    if (!home.has(HomeFile::Snapshots)) return DiskLayers{};
    SnapshotIndex index;
    auto const content = TRY(home.load(HomeFile::Snapshots));
    if (auto decoded = decode_fields(content, index); !decoded)
        return make_error(ErrorCode::Integrity, "the home's list of snapshots is malformed: {}",
                          decoded.error().message());
    return std::move(index.disks);
}

Result<std::unique_ptr<LayeredFile>> open_layered(HomeSession const& home, DiskConfig const& disk,
                                                  DiskLayers const& layers, Uuid const& top) {
    auto const folder = home.location().folder();
    auto const path = disk.file(folder);
    auto const chain = TRY(layers.chain(disk.path, top));
    auto own = TRY(devices::RawDisk::open(path, {.read_only = disk.read_only}));
    auto file = std::make_unique<LayeredFile>(std::make_unique<TrackedFile>(std::move(own), path), path);
    for (auto const& id : chain)
        file->push(TRY(OverlayFile::open(overlay_path(folder, id), {id, file->size()}, disk.read_only)));
    return file;
}

Result<std::unique_ptr<LayeredFile>> open_layered(HomeSession const& home, DiskConfig const& disk) {
    auto const layers = TRY(load_disk_layers(home));
    return open_layered(home, disk, layers, layers.top(disk.path));
}

Result<std::unique_ptr<devices::BlockBackend>> open_if_layered(HomeSession const& home, DiskConfig const& disk) {
    auto const layers = TRY(load_disk_layers(home));
    auto const top = layers.top(disk.path);
    if (top.is_nil()) return std::unique_ptr<devices::BlockBackend>();
    return std::unique_ptr<devices::BlockBackend>(TRY(open_layered(home, disk, layers, top)));
}

} // namespace coffer::vmm
