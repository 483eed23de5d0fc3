// A file that comes in parts, in any order and some of them again: a disk's, which the source's guest writes meanwhile.
// One thread at a time.
#pragma once

#include <filesystem>

#include "base/file.hpp"

namespace coffer::vmm::migrate {

class PartedFile {
public:
    // A new file of `size` zeros; AlreadyExists where one is there. `reserve`: all blocks are its own from now on.
    static Result<PartedFile> create(std::filesystem::path path, uint64_t size, bool reserve);

    static Error in_the_way(std::filesystem::path const& path);

    uint64_t size() const noexcept { return m_size; }
    // Within the file: the caller checks.
    Result<void> write(uint64_t offset, Bytes bytes);
    Result<void> zero(uint64_t offset, uint64_t size);
    // What was written is durable, and its name in the folder.
    Result<void> sync();

private:
    PartedFile(std::filesystem::path path, UniqueFd fd, uint64_t size, bool reserve)
        : m_path(std::move(path)), m_fd(std::move(fd)), m_size(size), m_reserve(reserve) {}

    std::filesystem::path m_path;
    UniqueFd m_fd;
    uint64_t m_size;
    bool m_reserve;
    bool m_named = false; // durably
    bool m_unsynced = true;
};

} // namespace coffer::vmm::migrate
