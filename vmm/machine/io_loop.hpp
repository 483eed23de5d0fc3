// The I/O thread and the device lock: virtual time, timers, descriptors and posted tasks.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/file.hpp"
#include "base/result.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::vmm {

// Lock order: the device lock, then m_mutex; no callback runs under m_mutex.
class IoLoop final : public devices::Scheduler {
public:
    static Result<std::unique_ptr<IoLoop>> create();
    ~IoLoop() override;

    // Callbacks run between start() and stop(), on a thread of the loop's own.
    void start();
    void stop() noexcept;

    // Held around every call into a device.
    std::mutex& device_lock() noexcept { return m_device_lock; }

    Nanoseconds now() const noexcept override;
    // A saved or restored machine's time: between freeze() and thaw() it stands still and no timer fires. thaw() puts
    // it where it would be, had it gone on, and `step` further: a machine that was saved meanwhile finds all its clocks
    // forward by the same span. Owner's thread, with the vCPUs stopped.
    void freeze() noexcept;
    void thaw(Nanoseconds step = 0) noexcept;
    std::unique_ptr<devices::Timer> make_timer(std::function<void()> callback) override;
    void post(std::function<void()> task) override;
    void watch_readable(int fd, std::function<void()> callback) override;
    void unwatch(int fd) override;

private:
    class LoopTimer;

    IoLoop(UniqueFd epoll, UniqueFd timer, UniqueFd wake);
    void run() noexcept;
    void fire_timers() noexcept;
    void run_tasks() noexcept;
    void set_timer_fd(Nanoseconds deadline) noexcept;

    UniqueFd m_epoll;
    UniqueFd m_timer;
    UniqueFd m_wake;
    std::atomic<Nanoseconds> m_origin;
    static constexpr Nanoseconds k_not_frozen = -1;
    std::atomic<Nanoseconds> m_frozen_at{k_not_frozen};

    std::mutex m_device_lock;

    std::mutex m_mutex; // the members below
    std::set<std::pair<Nanoseconds, LoopTimer*>> m_armed;
    std::vector<std::function<void()>> m_tasks;
    std::map<int, std::shared_ptr<std::function<void()>>> m_watches;

    std::atomic<bool> m_stopping{false};
    std::thread m_thread;
};

} // namespace coffer::vmm
