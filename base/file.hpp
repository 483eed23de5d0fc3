// File descriptors, whole-file reads, and the one way files are replaced: write a temporary, fsync, rename, fsync the
// folder. Functions are thread-safe on different files.
#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include <sys/types.h>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer {

// Owns a file descriptor; closes it at the end.
class UniqueFd {
public:
    UniqueFd() = default;
    explicit UniqueFd(int fd) noexcept : m_fd(fd) {}
    UniqueFd(UniqueFd&& other) noexcept : m_fd(std::exchange(other.m_fd, -1)) {}
    UniqueFd& operator=(UniqueFd&& other) noexcept {
        if (this != &other) {
            reset();
            m_fd = std::exchange(other.m_fd, -1);
        }
        return *this;
    }
    ~UniqueFd() { reset(); }

    int get() const noexcept { return m_fd; }
    bool valid() const noexcept { return m_fd >= 0; }
    int release() noexcept { return std::exchange(m_fd, -1); }
    void reset() noexcept;

private:
    int m_fd = -1;
};

// open(2) with O_CLOEXEC added; the error names the path.
Result<UniqueFd> open_file(std::filesystem::path const& path, int flags, mode_t mode = 0600);

// The whole of a regular file; refused (Corrupt) where it is longer than `limit` bytes.
Result<ByteVector> read_file(std::filesystem::path const& path, size_t limit);

// All bytes at an offset, or an error; a short file is Corrupt.
Result<void> pread_all(int fd, MutBytes to, uint64_t offset, std::filesystem::path const& name);
Result<void> pwrite_all(int fd, Bytes from, uint64_t offset, std::filesystem::path const& name);
// Any file descriptor, in order, retrying EINTR.
Result<void> write_all(int fd, Bytes from, std::string_view name);

// After success the folder durably holds `path` with `content`; after a failure, or a crash at any point, it holds what
// it held before (a stale temporary ".<name>.tmp" may be left and is replaced next time).
Result<void> replace_file(std::filesystem::path const& path, Bytes content, mode_t mode = 0600);

// fsync of a folder, after a create, rename or unlink in it.
Result<void> sync_folder(std::filesystem::path const& folder);

// The folder and those above it that are missing, with mode 0700 and durable. No error where it exists.
Result<void> make_folders(std::filesystem::path const& folder);

// unlink(2), durable; no error where there is no such file.
Result<void> remove_file(std::filesystem::path const& path);

} // namespace coffer
