// Copying large files, such as disk images.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

#include "base/result.hpp"
#include "devices/core/backends.hpp"

namespace coffer::vmm {

// Bytes looked at so far, holes included; an error stops the copy and is its result.
using CopyProgress = std::function<Result<void>(uint64_t done)>;

// Writes `content` to `to`, an empty regular file, leaving holes for runs of zeros, and syncs it.
Result<void> copy_disk_content(devices::BlockBackend& content, int to, std::filesystem::path const& to_name,
                               CopyProgress const& progress);

// Makes `to`, an empty regular file, hold the content of the regular file `from`, and syncs it. Shares the blocks where
// the file system can (FICLONE, ioctl_ficlone(2)), and keeps holes elsewhere. Both are open; names are for messages.
Result<void> copy_file_content(int from, std::filesystem::path const& from_name, int to,
                               std::filesystem::path const& to_name, CopyProgress const& progress);

// Makes `to`, an empty regular file, share the content of `from` and syncs it. False where they cannot share blocks.
Result<bool> share_file_content(int from, int to, std::filesystem::path const& to_name);

// Parts of a regular file that are no holes, in order: use(offset, size) for each, in pieces of at most `piece` bytes
// that do not cross a multiple of it.
Result<void> for_each_data_piece(int fd, std::filesystem::path const& name, uint64_t size, uint64_t piece,
                                 std::function<Result<void>(uint64_t offset, uint64_t size)> const& use);

} // namespace coffer::vmm
