// A large file that is written once, by several threads, past the page cache where its file system does that
// (open(2), O_DIRECT): the disk's speed without a second copy of everything, memory found for that, and a flush of all
// of it at the end. A file system that refuses gets the same bytes by way of the page cache. Nothing is durable before
// fsync(2) in either case.
#pragma once

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>

#include "base/file.hpp"

namespace coffer::vmm {

class DirectFile {
public:
    static constexpr size_t k_alignment = 4096; // of direct writes; no disk's blocks are larger

    // Makes it, or empties it. What is placed in it begins at `start`, a multiple of k_alignment.
    static Result<std::unique_ptr<DirectFile>> create(std::filesystem::path path, uint64_t start);

    // Any thread: where so many bytes, a multiple of k_alignment, may be written, behind all that was placed before.
    uint64_t place(size_t size) noexcept;
    // Any thread: `from` is aligned to k_alignment, and so are its size and `at`. Io, NoSpace.
    Result<void> write(Bytes from, uint64_t at);
    // The last that is done: bytes of any size behind all that was placed, which end the file. Gives where.
    Result<uint64_t> finish(Bytes from);

private:
    DirectFile(std::filesystem::path path, UniqueFd fd, uint64_t start);
    bool set_direct(bool direct) noexcept;

    std::filesystem::path m_path;
    UniqueFd m_fd;
    std::atomic<uint64_t> m_end;
    std::mutex m_mutex;
    uint64_t m_reserved; // the file's size; by m_mutex
};

// Memory for one write, filled piece by piece.
class WriteBuffer {
public:
    static constexpr size_t k_capacity = size_t{512} << 10;

    WriteBuffer();

    bool empty() const noexcept { return m_used == 0; }
    size_t size() const noexcept { return m_used; }
    bool has_room(size_t size) const noexcept { return k_capacity - m_used >= size; }
    MutBytes add(size_t size) noexcept;
    // All of it, with zeros behind, up to a multiple of DirectFile::k_alignment.
    Bytes padded() noexcept;
    void clear() noexcept { m_used = 0; }

private:
    std::unique_ptr<std::byte, decltype(&std::free)> m_data;
    size_t m_used = 0;
};

} // namespace coffer::vmm
