// Raw disk images of a new VM, made of another's or of a backup: first under hidden names, then under their own, and
// gone again unless the VM comes to be.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "vmm/home/file_copy.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

class DiskCopies {
public:
    // Writes the content of a disk to an empty file, durable.
    using Fill = std::function<Result<void>(int to, std::filesystem::path const& to_name, CopyProgress const&)>;

    // The content of a disk that is not in its own file alone; null where it is.
    using Opener = std::function<Result<std::unique_ptr<devices::BlockBackend>>(DiskConfig const&)>;

    DiskCopies() = default;
    // Says where each copy goes: NAME-FILE, NAME the new VM's, beside its source or in `folder` where that is not
    // empty. Read-only disks are shared, and disks in the home are not looked at. AlreadyExists where something has a
    // copy's name, InvalidArgument for a block device.
    static Result<DiskCopies> plan(std::vector<DiskConfig> const& source, std::string const& name,
                                   std::filesystem::path const& folder, Opener const& open_content = {});

    DiskCopies(DiskCopies&& other) noexcept
        : m_disks(std::move(other.m_disks)), m_copies(std::exchange(other.m_copies, {})) {}
    DiskCopies& operator=(DiskCopies&&) = delete;
    ~DiskCopies();

    // One image of `size` bytes, which is to be `to`. AlreadyExists where something has that name.
    Result<void> add(std::filesystem::path to, uint64_t size, Fill fill);

    // After plan(): the new VM's disks, in the order of the source's.
    std::vector<DiskConfig> const& disks() const noexcept { return m_disks; }
    bool empty() const noexcept { return m_copies.empty(); }
    uint64_t total() const noexcept; // bytes

    // Makes the images under hidden names. Nobody may write to the sources meanwhile.
    Result<void> copy(CopyProgress const& progress);
    // Gives them their names. AlreadyExists where one was taken meanwhile.
    Result<void> place();
    // The new VM is there: the copies stay.
    void keep() noexcept { m_copies.clear(); }

private:
    struct Copy {
        std::filesystem::path to;
        uint64_t size = 0; // bytes
        Fill fill;
        bool placed = false;

        std::filesystem::path hidden() const { return to.parent_path() / ("." + to.filename().native() + ".tmp"); }
    };

    std::vector<DiskConfig> m_disks;
    std::vector<Copy> m_copies;
};

} // namespace coffer::vmm
