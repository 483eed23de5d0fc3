// The files that a VM's disks lie in, sent while the guest writes them: all that is in them once, then what was written
// meanwhile, round by round; the last round has the guest stopped and all writes done (TrackedFile).
//
// One thread at a time.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/clock.hpp"
#include "vmm/disk/tracked_file.hpp"
#include "vmm/migrate/stream.hpp"

namespace coffer::vmm::migrate {

struct DiskFile {
    FileMessage message; // what the destination knows it as, and its size
    std::filesystem::path path;
    DirtyBlocks* dirty = nullptr; // null: nobody writes it. Outlives the sender
};

struct DiskRoundReport {
    uint32_t round = 0;     // from 1
    uint64_t bytes = 0;     // sent
    uint64_t remaining = 0; // bytes written since they were sent
    Nanoseconds duration = 0;
};

struct DiskProgress {
    uint32_t round = 0;
    uint64_t done = 0; // bytes of this round, zeros included
    uint64_t total = 0;
    uint64_t bytes = 0; // sent, in all rounds
};

class DiskSender {
public:
    struct Options {
        std::function<bool()> cancelled = {}; // asked between pieces of 1 MiB
        std::function<void(DiskProgress const&)> progress = {};
    };

    // From here on writes are noted. Busy where somebody copies the disks already.
    static Result<std::unique_ptr<DiskSender>> create(Stream& stream, std::vector<DiskFile> files, Options options);
    ~DiskSender();
    DiskSender(DiskSender const&) = delete;
    DiskSender& operator=(DiskSender const&) = delete;

    // Everything at first, later what remaining() says. Cancelled, or another error: nothing more can be sent.
    Result<DiskRoundReport> send_round();
    // Bytes that the next round would send, but for the first.
    uint64_t remaining() const;

private:
    DiskSender(Stream& stream, std::vector<DiskFile> files, Options options);
    Result<void> send_all();
    Result<void> send_written();
    Result<void> send_range(DiskFile const& file, int fd, FileRange const& range, bool zeros);
    Result<void> send_run(DiskFile const& file, uint64_t offset, Bytes run, bool zeros);
    void advance(uint64_t bytes);

    Stream& m_stream;
    std::vector<DiskFile> m_files;
    Options m_options;
    ByteVector m_buffer;
    DiskRoundReport m_report; // of this round
    DiskProgress m_progress;
};

} // namespace coffer::vmm::migrate
