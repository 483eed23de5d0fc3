// Time and threads as devices see them: virtual time, timers, and a way back under the device lock.
#pragma once

#include <functional>
#include <memory>

#include "base/clock.hpp"

namespace coffer::devices {

// A one-shot timer. Its callback runs on the I/O thread under the device lock. A device owns its timers.
class Timer {
public:
    virtual ~Timer() = default;
    // Any thread, with or without the device lock: a local APIC arms its timer from the vCPU's thread. Re-arming replaces
    // the old deadline; one in the past fires as soon as it can. A callback on its way may still come after either.
    virtual void arm(Nanoseconds deadline) noexcept = 0;
    virtual void disarm() noexcept = 0;
};

class Scheduler {
public:
    virtual ~Scheduler() = default;

    // Virtual time: advances with the host's monotonic clock while the VM runs, stands still while it is stopped, and
    // starts at 0. Any thread.
    virtual Nanoseconds now() const noexcept = 0;
    // Under the device lock. `callback` must not throw.
    virtual std::unique_ptr<Timer> make_timer(std::function<void()> callback) = 0;
    // Any thread: runs `task` soon on the I/O thread under the device lock. Tasks run in order.
    virtual void post(std::function<void()> task) = 0;

    // Calls `callback` (I/O thread, device lock) whenever the descriptor is readable, until unwatched.
    virtual void watch_readable(int fd, std::function<void()> callback) = 0;
    virtual void unwatch(int fd) = 0;
};

}  // namespace coffer::devices
