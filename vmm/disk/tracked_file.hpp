// A file that a disk's content lies in, which says what was written to it: for who copies it while the VM runs.
//
//   TRY(file.dirty().start());                 // from here on
//   ... copy all of it ...
//   for (auto range : file.dirty().take()) ... // again, until little comes
//   ... nobody writes any more; take() once more ...
//   file.dirty().stop();
//
// Nothing is lost: a write is noted after it is done, so that whoever takes the note reads what was written; and one
// that is not noted yet, while its block is read, is noted later.
//
// Thread rule: TrackedFile as BlockBackend; dirty() from any thread meanwhile.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#include "devices/core/backends.hpp"

namespace coffer::vmm {

struct FileRange {
    uint64_t offset = 0; // bytes
    uint64_t size = 0;
    bool operator==(FileRange const&) const = default;
};

// Which blocks were written since they were last taken.
class DirtyBlocks {
public:
    static constexpr uint64_t k_block_size = uint64_t{64} << 10;

    explicit DirtyBlocks(uint64_t file_size) : m_file_size(file_size) {}

    // What was written before is not noted. Busy while somebody else has it.
    Result<void> start();
    void stop() noexcept;

    // After the write, and also where it failed, which may have left a part of it. While nobody asked: a lock that is
    // free, beside a system call.
    void note(uint64_t offset, uint64_t size) noexcept;

    // Bytes of the blocks that take() would give now.
    uint64_t bytes() const;
    // Ascending; whole blocks but for the file's end, neighbours as one. They count as not written after.
    std::vector<FileRange> take();

private:
    uint64_t const m_file_size;
    mutable std::mutex m_mutex; // all below
    bool m_noting = false;
    std::vector<uint64_t> m_blocks; // a bit each
};

class TrackedFile final : public devices::BlockBackend {
public:
    TrackedFile(std::unique_ptr<devices::BlockBackend> file, std::filesystem::path path)
        : m_file(std::move(file)), m_path(std::move(path)), m_dirty(m_file->size()) {}

    devices::BlockBackend& file() noexcept { return *m_file; }
    std::filesystem::path const& path() const noexcept { return m_path; }
    DirtyBlocks& dirty() noexcept { return m_dirty; }
    // A copy, of the same content, takes the file's place. With no I/O under way.
    void exchange(std::unique_ptr<devices::BlockBackend> file, std::filesystem::path path) noexcept {
        COFFER_ASSERT(file->size() == size());
        m_file = std::move(file);
        m_path = std::move(path);
    }

    uint64_t size() const noexcept override { return m_file->size(); }
    bool read_only() const noexcept override { return m_file->read_only(); }
    Result<void> read(uint64_t offset, MutBytes to) override { return m_file->read(offset, to); }
    Result<void> write(uint64_t offset, Bytes from) override;
    Result<void> flush() override { return m_file->flush(); }
    Result<void> write_zeroes(uint64_t offset, uint64_t size) override;
    Result<void> discard(uint64_t offset, uint64_t size) override;

private:
    std::unique_ptr<devices::BlockBackend> m_file;
    std::filesystem::path m_path;
    DirtyBlocks m_dirty;
};

} // namespace coffer::vmm
