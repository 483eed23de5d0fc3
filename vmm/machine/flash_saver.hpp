// Keeps the home's copy of the variable flash in step with the guest's: a commit when the flash has been quiet for
// k_quiet, and at reset and power-off at once. Commits run on a thread of their own, so that no fsync holds the device
// lock.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "base/result.hpp"
#include "devices/core/backends.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::vmm {

class FlashSaver {
public:
    // OVMF erases and writes a variable in many small steps.
    static constexpr Nanoseconds k_quiet = 100 * k_ns_per_ms;

    // `flash` is the content that the guest sees; all references outlive the object.
    FlashSaver(devices::Scheduler& scheduler, std::mutex& device_lock, devices::NvStore& store, Bytes flash);
    ~FlashSaver();
    FlashSaver(FlashSaver const&) = delete;
    FlashSaver& operator=(FlashSaver const&) = delete;

    // The flash was changed. Under the device lock.
    void changed() noexcept;

    // After success the home has what the flash holds. Not under the device lock; blocks for the disk.
    Result<void> flush();

private:
    void run() noexcept;
    Result<void> commit_now();

    std::mutex& m_device_lock;
    devices::NvStore& m_store;
    Bytes m_flash;
    devices::Scheduler& m_scheduler;
    std::unique_ptr<devices::Timer> m_timer; // under the device lock
    bool m_dirty = false;                    // under the device lock

    std::mutex m_commit_mutex; // one commit at a time; taken before the device lock

    std::mutex m_mutex;
    std::condition_variable m_wake;
    bool m_requested = false;
    bool m_closing = false;
    std::thread m_thread;
};

} // namespace coffer::vmm
