// The disks' part of moving a home while they are used: files of theirs that lie in the home are copied while the guest
// writes them, then again what it wrote meanwhile, round by round, until the rest is copied while it stands still.
//
// One thread at a time, while the disks are used by others.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "devices/storage/raw_disk.hpp"
#include "vmm/disk/home_disks.hpp"

namespace coffer::vmm {

class DiskMove {
public:
    // Bytes; an error ends the copying.
    using Progress = std::function<Result<void>(uint64_t done, uint64_t total)>;

    // No snapshot is taken or deleted from here to the end. `disks` outlives this.
    explicit DiskMove(HomeDisks& disks);
    // Where go_over() was not called, the disks go on in the files that they are in.
    ~DiskMove();
    DiskMove(DiskMove const&) = delete;
    DiskMove& operator=(DiskMove const&) = delete;

    // Of the files, without folders.
    std::set<std::string> names() const;

    // All of each file, to the folder of a home in the making: durable, with the holes that it has. What is written
    // from here on is noted.
    Result<void> copy(std::filesystem::path const& folder, Progress const& progress);
    struct Rounds {
        unsigned count = 0;
        uint64_t bytes = 0;
    };
    // What was written since, until little is left or it does not get less.
    Result<Rounds> copy_rounds(Progress const& progress);
    // The rest, while nothing is written: bytes.
    Result<uint64_t> copy_rest(Progress const& progress);

    // When `folder`, the home's from now on, has the copies: the disks use them. With no I/O under way.
    void go_over(std::filesystem::path const& folder);

private:
    struct File {
        TrackedFile* now = nullptr;
        bool reserved = false;
        bool noting = false;
        std::unique_ptr<devices::RawDisk> copy = {};
    };
    Result<void> copy_whole(File& file, std::filesystem::path const& to, Progress const& progress);
    uint64_t left() const;

    HomeDisks& m_disks;
    std::vector<File> m_files;
    ByteVector m_buffer;
};

} // namespace coffer::vmm
