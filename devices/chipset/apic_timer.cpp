#include "devices/chipset/apic_timer.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace coffer::devices {

namespace {
// Expiries come no more often than this, so that a guest cannot keep the I/O thread busy with a tiny period; those in
// between are merged, as they are for a CPU that is slow to take them.
constexpr Nanoseconds k_min_interval = 50 * k_ns_per_us;
constexpr Nanoseconds k_max_wait = 3600 * k_ns_per_s;
} // namespace

ApicTimer::ApicTimer(Scheduler& scheduler, TscClock const& tsc, std::function<void()> on_timer)
    : m_scheduler(scheduler), m_tsc(tsc), m_timer(scheduler.make_timer(std::move(on_timer))) {
    COFFER_ASSERT(m_tsc.hz > 0 && m_tsc.guest_tsc);
}

uint64_t ApicTimer::elapsed_ns() const noexcept {
    return static_cast<uint64_t>(std::max<Nanoseconds>(0, m_scheduler.now() - m_start));
}

uint32_t ApicTimer::current_count() const noexcept {
    if (m_initial_count == 0 || m_mode == ApicTimerMode::TscDeadline) return 0;
    uint64_t ticks = elapsed_ns() >> m_shift;
    if (m_mode == ApicTimerMode::Periodic) return static_cast<uint32_t>(m_initial_count - ticks % m_initial_count);
    return ticks >= m_initial_count ? 0 : static_cast<uint32_t>(m_initial_count - ticks);
}

// The host's time of the next expiry.
std::optional<Nanoseconds> ApicTimer::next_expiry() const noexcept {
    if (m_mode == ApicTimerMode::TscDeadline) {
        if (m_tsc_deadline == 0) return std::nullopt;
        uint64_t tsc = m_tsc.guest_tsc();
        if (tsc >= m_tsc_deadline) return m_scheduler.now();
        uint64_t ticks = m_tsc_deadline - tsc;
        uint64_t seconds = ticks / m_tsc.hz;
        // Longer waits are cut, and taken up again by take_expiry().
        if (seconds >= static_cast<uint64_t>(k_max_wait / k_ns_per_s)) return m_scheduler.now() + k_max_wait;
        __extension__ using Wide = unsigned __int128;
        auto rest = static_cast<uint64_t>(Wide{ticks % m_tsc.hz} * uint64_t{k_ns_per_s} / m_tsc.hz) + 1;
        return m_scheduler.now() + static_cast<Nanoseconds>(seconds) * k_ns_per_s + static_cast<Nanoseconds>(rest);
    }
    if (m_initial_count == 0 || m_mode == ApicTimerMode::Reserved) return std::nullopt;
    if (m_mode == ApicTimerMode::OneShot && m_expired) return std::nullopt;
    return m_start + static_cast<Nanoseconds>(period_ns());
}

void ApicTimer::rearm() noexcept {
    if (auto next = next_expiry())
        m_timer->arm(*next);
    else
        m_timer->disarm();
}

bool ApicTimer::take_expiry() {
    auto next = next_expiry();
    // Disarmed or moved after the callback was on its way.
    if (!next) return false;
    Nanoseconds now = m_scheduler.now();
    if (*next > now) {
        m_timer->arm(*next);
        return false;
    }
    switch (m_mode) {
    case ApicTimerMode::TscDeadline: m_tsc_deadline = 0; break;
    case ApicTimerMode::Periodic:
        m_start += static_cast<Nanoseconds>(elapsed_ns() / period_ns() * period_ns());
        m_timer->arm(std::max(m_start + static_cast<Nanoseconds>(period_ns()), now + k_min_interval));
        break;
    default: m_expired = true; break;
    }
    return true;
}

void ApicTimer::set_mode(ApicTimerMode mode) {
    if (mode == m_mode) return;
    if ((mode == ApicTimerMode::TscDeadline) != (m_mode == ApicTimerMode::TscDeadline)) {
        m_initial_count = 0;
        m_tsc_deadline = 0;
    }
    m_mode = mode;
    rearm();
}

void ApicTimer::set_initial_count(uint32_t count) {
    if (m_mode == ApicTimerMode::TscDeadline) return; // SDM 11.5.4.1: ignored in this mode
    m_initial_count = count;
    m_start = m_scheduler.now();
    m_expired = false;
    rearm();
}

// The count goes on from where it is, at the new rate.
void ApicTimer::set_divider(uint8_t shift) {
    if (shift == m_shift) return;
    uint64_t done = m_initial_count - uint64_t{current_count()};
    m_shift = shift;
    m_start = m_scheduler.now() - static_cast<Nanoseconds>(done << shift);
    rearm();
}

void ApicTimer::set_deadline(uint64_t tsc) {
    if (m_mode != ApicTimerMode::TscDeadline) return;
    m_tsc_deadline = tsc;
    rearm();
}

void ApicTimer::reset() noexcept {
    m_mode = ApicTimerMode::OneShot;
    m_initial_count = 0;
    m_shift = 1; // DIVIDE_CONFIG 0 is divide by 2
    m_expired = false;
    m_start = 0;
    m_tsc_deadline = 0;
    m_timer->disarm();
}

ApicTimerState ApicTimer::saved() const {
    ApicTimerState state;
    state.initial_count = m_initial_count;
    state.elapsed_ns = m_initial_count == 0 ? 0 : elapsed_ns();
    state.expired = m_expired;
    state.tsc_deadline = m_tsc_deadline;
    return state;
}

Result<void> ApicTimer::check(ApicTimerState const& state) {
    if (state.elapsed_ns > static_cast<uint64_t>(std::numeric_limits<Nanoseconds>::max() / 4))
        return make_error(ErrorCode::Corrupt, "saved state of a local APIC timer is out of range");
    return {};
}

void ApicTimer::load(ApicTimerState const& state, ApicTimerMode mode, uint8_t shift) {
    m_mode = mode;
    m_initial_count = state.initial_count;
    m_shift = shift;
    m_expired = state.expired;
    m_start = m_scheduler.now() - static_cast<Nanoseconds>(state.elapsed_ns);
    m_tsc_deadline = state.tsc_deadline;
    rearm();
}

} // namespace coffer::devices
