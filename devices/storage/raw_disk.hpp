// A disk in a raw file or on a block device. One thread at a time, as BlockBackend says.
#pragma once

#include <filesystem>
#include <memory>

#include "base/file.hpp"
#include "devices/core/backends.hpp"

namespace coffer::devices {

class RawDisk final : public BlockBackend {
public:
    struct Options {
        bool read_only = false;
        // O_DIRECT: past the host's page cache. Accesses that are not aligned to 4096 bytes go through a buffer.
        bool direct = false;
    };
    // The file is locked (open file description lock, whole file) for as long as this object lives: shared where
    // read-only, else exclusively. Errors: Busy where another VM holds it, Corrupt where its size is no multiple of 512
    // (4096 with `direct`), Unsupported where it is no disk or its file system has no direct I/O.
    static Result<std::unique_ptr<RawDisk>> open(std::filesystem::path const& path, Options options);

    // Bytes, without a lock. Unsupported where it is neither a file nor a block device; that is not opened.
    static Result<uint64_t> size_of(std::filesystem::path const& path);

    uint64_t size() const noexcept override { return m_size; }
    bool read_only() const noexcept override { return m_options.read_only; }
    Result<void> read(uint64_t offset, MutBytes to) override;
    Result<void> write(uint64_t offset, Bytes from) override;
    Result<void> flush() override;
    // For a VM that another host is about to run: others may open the file. lock() is for the case that none does:
    // Busy.
    void unlock() noexcept;
    Result<void> lock();
    // The file has another name now; for messages.
    void rename(std::filesystem::path path) { m_path = std::move(path); }
    // Holes where the file system makes them; else zeroes are written.
    Result<void> write_zeroes(uint64_t offset, uint64_t size) override;
    Result<void> discard(uint64_t offset, uint64_t size) override;

private:
    struct FreeDeleter {
        void operator()(std::byte* memory) const noexcept;
    };

    RawDisk(std::filesystem::path path, Options options, UniqueFd fd, uint64_t size);
    bool aligned(uint64_t offset, Bytes bytes) const noexcept;
    // Whether a hole was made; false where the host cannot.
    Result<bool> punch_hole(uint64_t offset, uint64_t size);

    std::filesystem::path m_path;
    Options m_options;
    UniqueFd m_fd;
    uint64_t m_size;
    std::unique_ptr<std::byte[], FreeDeleter> m_bounce; // with direct only
};

} // namespace coffer::devices
