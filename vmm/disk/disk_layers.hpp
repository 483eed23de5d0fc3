// Which files a disk's content is in, by the home's file `snapshots` (docs/formats/snapshot.md, "Disks").
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/disk/layered_file.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/home/overlay_files.hpp"

namespace coffer::vmm {

// An overlay of a disk's tree, whose root is the disk's own file.
struct DiskLayer {
    Uuid id;
    Uuid parent;      // all zeros: the disk's own file
    std::string disk; // DiskConfig::path

    template <class V>
    void fields(V& v) {
        v.required(1, id);
        v.required(2, parent);
        v.required(3, disk);
    }
    bool operator==(DiskLayer const&) const = default;
};

// Where a disk that has layers is at.
struct DiskTop {
    std::string disk;
    Uuid layer;

    template <class V>
    void fields(V& v) {
        v.required(1, disk);
        v.required(2, layer);
    }
    bool operator==(DiskTop const&) const = default;
};

struct DiskLayers {
    std::vector<DiskLayer> layers;
    std::vector<DiskTop> tops; // a disk that is not named is at its own file

    template <class V>
    void fields(V& v) {
        v.field(1, layers);
        v.field(2, tops);
    }

    DiskLayer const* find(Uuid const& id) const noexcept;
    bool any_of(std::string_view disk) const noexcept;
    Uuid top(std::string_view disk) const noexcept;
    // Overlays that the disk as it is now is made of; 0 where that cannot be told.
    size_t depth(std::string_view disk) const;
    void set_top(std::string const& disk, Uuid const& layer);
    // The layers of `disk` from the lowest to `top`. Integrity where they are no such thing.
    Result<std::vector<Uuid>> chain(std::string_view disk, Uuid const& top) const;
};

std::filesystem::path overlay_path(std::filesystem::path const& home, Uuid const& id);

// As the home says; of a home without snapshots none.
Result<DiskLayers> load_disk_layers(HomeSession const& home);

// The image of a disk as of `top`, locked. Errors as RawDisk::open() and OverlayFile::open().
Result<std::unique_ptr<LayeredFile>> open_layered(HomeSession const& home, DiskConfig const& disk,
                                                  DiskLayers const& layers, Uuid const& top);
// As it is now.
Result<std::unique_ptr<LayeredFile>> open_layered(HomeSession const& home, DiskConfig const& disk);
// The same for who copies files: null where the disk's own file is all there is.
Result<std::unique_ptr<devices::BlockBackend>> open_if_layered(HomeSession const& home, DiskConfig const& disk);

} // namespace coffer::vmm
