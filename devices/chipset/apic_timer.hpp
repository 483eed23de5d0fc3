// The local APIC's timer: one-shot, periodic and TSC-deadline (Intel SDM vol. 3, order 325384-081, 11.5.4).
//
// Counts at 1 GHz before the divider. Thread rule: all functions want the interrupt lock held.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/result.hpp"
#include "devices/chipset/local_apic_state.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

// Guest time as the TSC-deadline mode needs it. `guest_tsc` may be called from any thread and takes no lock.
struct TscClock {
    uint64_t hz = 0;
    std::function<uint64_t()> guest_tsc;
};

enum class ApicTimerMode : uint8_t { OneShot, Periodic, TscDeadline, Reserved };

class ApicTimer {
public:
    // `on_timer` is called without the lock; it takes the lock and calls take_expiry().
    ApicTimer(Scheduler& scheduler, TscClock const& tsc, std::function<void()> on_timer);

    // A change from or to TSC-deadline disarms.
    void set_mode(ApicTimerMode mode);
    void set_initial_count(uint32_t count);
    void set_divider(uint8_t shift);
    void set_deadline(uint64_t tsc);

    uint32_t initial_count() const noexcept { return m_initial_count; }
    uint32_t current_count() const noexcept;
    uint64_t deadline() const noexcept { return m_tsc_deadline; }

    // Whether the timer expired since the last call; arms itself for what comes next.
    bool take_expiry();

    void reset() noexcept;
    ApicTimerState saved() const;
    static Result<void> check(ApicTimerState const& state);
    void load(ApicTimerState const& state, ApicTimerMode mode, uint8_t shift);

private:
    uint64_t elapsed_ns() const noexcept;
    uint64_t period_ns() const noexcept { return uint64_t{m_initial_count} << m_shift; }
    std::optional<Nanoseconds> next_expiry() const noexcept;
    void rearm() noexcept;

    Scheduler& m_scheduler;
    TscClock m_tsc;
    std::unique_ptr<Timer> m_timer;

    ApicTimerMode m_mode = ApicTimerMode::OneShot;
    uint32_t m_initial_count = 0;
    uint8_t m_shift = 1;
    bool m_expired = false;
    Nanoseconds m_start = 0; // when the count was loaded; moved on by whole periods
    uint64_t m_tsc_deadline = 0;
};

} // namespace coffer::devices
