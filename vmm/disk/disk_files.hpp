// Making disk images, and moving content into and out of them.
#pragma once

#include <functional>

#include "vmm/disk/encrypted_disk.hpp"

namespace coffer::vmm {

// What opening a disk's image file in a home ran into.
Error not_opened(std::filesystem::path const& image, Error error);

constexpr uint64_t k_default_journal = uint64_t{32} << 20;

// Told now and then, in bytes of the guest's disk.
using DiskProgress = std::function<void(uint64_t done, uint64_t total)>;

struct NewDisk {
    Uuid vm;
    DiskProtection protection = DiskProtection::Unauthenticated;
    uint64_t size = 0;                         // bytes; a multiple of 512
    uint64_t journal_size = k_default_journal; // of an authenticated disk
};
// A sparse image that reads as zeros; durable but for its name in the folder. AlreadyExists where there is such a file;
// on another failure there is none.
Result<void> create_disk(std::filesystem::path const& image, DiskSecret const& secret, NewDisk const& disk);

// Copies everything but runs of zeros; durable afterwards. The sizes are the same.
Result<void> copy_disk(devices::BlockBackend& from, devices::BlockBackend& to, DiskProgress const& progress);

// `image` as it came open, locked as RawDisk does it; `path` is for messages.
template <class File>
Result<std::unique_ptr<EncryptedDisk>> open_disk(std::filesystem::path const& path, Result<std::unique_ptr<File>> image,
                                                 DiskSecret const& secret, ExpectedDisk const& expected) {
    if (!image) return not_opened(path, std::move(image).error());
    return open_encrypted_disk(path, std::unique_ptr<devices::BlockBackend>(std::move(*image)), secret, expected);
}
// The same with the file itself.
Result<std::unique_ptr<EncryptedDisk>> open_disk(std::filesystem::path const& image, DiskSecret const& secret,
                                                 ExpectedDisk const& expected, bool read_only = false);

} // namespace coffer::vmm
