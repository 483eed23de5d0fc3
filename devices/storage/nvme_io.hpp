// The disk's worker thread: takes commands that need the backend, moves data between it and guest memory, and hands
// results back. The controller's registers and queues are not its business.
//
// Thread rule: all functions from one thread at a time (the device lock covers that); `notify` is called by the worker,
// without any lock, after each result is there to be collected.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "devices/core/backends.hpp"
#include "devices/core/guest_memory.hpp"
#include "devices/storage/nvme_prp.hpp"
#include "devices/storage/nvme_spec.hpp"

namespace coffer::devices::nvme {

struct IoRequest {
    enum class Kind : uint8_t { Read, Write, Flush, WriteZeroes, Deallocate, Shutdown };
    Kind kind = Kind::Flush;
    bool durable = false; // Write, WriteZeroes: flush before completing
    uint16_t sq = 0;
    uint16_t command = 0;
    uint64_t first = 0; // bytes, within the backend
    uint64_t size = 0;  // bytes; Read and Write at most k_max_transfer
    uint64_t prp1 = 0;
    uint64_t prp2 = 0;
    unsigned ranges = 0; // Deallocate
};

struct IoResult {
    IoRequest request;
    Status status = Status::Success;
};

class IoWorker {
public:
    IoWorker(BlockBackend& backend, GuestMemory& memory, std::function<void()> notify);
    ~IoWorker();
    IoWorker(IoWorker const&) = delete;
    IoWorker& operator=(IoWorker const&) = delete;

    void submit(IoRequest const& request);
    std::vector<IoResult> collect();
    // Forgets what is not begun, and results not collected. At most one request is still under way after this.
    void cancel();
    // No request queued or under way; results may wait to be collected.
    bool idle() const;
    void wait_idle();

private:
    void run() noexcept;
    Status execute(IoRequest const& request);
    Status transfer(IoRequest const& request);
    Status deallocate(IoRequest const& request);
    Status flush();
    MutBytes bounce(size_t size);

    BlockBackend& m_backend;
    GuestMemory& m_memory;
    std::function<void()> m_notify;

    // The worker's own.
    std::vector<Extent> m_extents;
    struct FreeDeleter {
        void operator()(std::byte* memory) const noexcept;
    };
    std::unique_ptr<std::byte[], FreeDeleter> m_bounce; // k_max_transfer bytes, page-aligned; allocated at first use

    mutable std::mutex m_mutex; // the members below
    std::condition_variable m_work;
    std::condition_variable m_idle;
    std::deque<IoRequest> m_queue;
    std::vector<IoResult> m_results;
    bool m_busy = false;
    bool m_cancelled = false; // the request under way: its result is dropped
    bool m_stopping = false;

    std::thread m_thread;
};

} // namespace coffer::devices::nvme
