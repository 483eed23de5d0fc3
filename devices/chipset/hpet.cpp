#include "devices/chipset/hpet.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/tagged.hpp"

namespace coffer::devices {

using namespace hpet;

namespace {
// A guest cannot make the I/O thread busier than this by a tiny period; matches in between are merged.
constexpr Nanoseconds k_min_interval = 50 * k_ns_per_us;
constexpr Nanoseconds k_max_wait = 3600 * k_ns_per_s;

uint64_t merged(uint64_t old, uint64_t value, uint64_t mask) {
    return (old & ~mask) | (value & mask);
}
} // namespace

Hpet::Hpet(Scheduler& scheduler, IrqSink& irqs, std::function<void(bool)> on_legacy)
    : m_scheduler(scheduler), m_irqs(irqs), m_on_legacy(std::move(on_legacy)) {
    for (unsigned i = 0; i < k_timers; ++i) m_timers[i] = scheduler.make_timer([this, i] { on_timer(i); });
}

uint64_t Hpet::counter() const noexcept {
    if (!enabled()) return m_counter;
    return m_counter + static_cast<uint64_t>((m_scheduler.now() - m_started) / k_ns_per_tick);
}

// When the running counter reaches `count`; far times are cut and taken up again.
Nanoseconds Hpet::time_of(uint64_t count) const noexcept {
    if (count <= m_counter) return m_scheduler.now();
    uint64_t ticks = count - m_counter;
    if (ticks > static_cast<uint64_t>(std::numeric_limits<Nanoseconds>::max() / 2 / k_ns_per_tick))
        return m_scheduler.now() + k_max_wait;
    return std::min(m_started + static_cast<Nanoseconds>(ticks) * k_ns_per_tick, m_scheduler.now() + k_max_wait);
}

unsigned Hpet::route(unsigned index) const noexcept {
    if (legacy() && index < 2) return k_legacy_gsi[index];
    return static_cast<unsigned>((m_comparators[index].config & k_timer_route) >> k_timer_route_shift);
}

void Hpet::schedule(unsigned index) {
    Comparator& timer = m_comparators[index];
    uint64_t now = counter();
    if (timer.narrow()) {
        // Matches whenever the low halves are equal: within 2^32 ticks.
        auto ahead = static_cast<uint32_t>(timer.comparator - now);
        timer.due = now + (ahead == 0 ? uint64_t{1} << 32 : ahead);
        timer.armed = true;
    } else {
        timer.due = timer.comparator;
        timer.armed = timer.comparator > now;
    }
    arm(index);
}

void Hpet::arm(unsigned index) noexcept {
    Comparator const& timer = m_comparators[index];
    if (enabled() && timer.armed)
        m_timers[index]->arm(time_of(timer.due));
    else
        m_timers[index]->disarm();
}

void Hpet::on_timer(unsigned index) {
    Comparator& timer = m_comparators[index];
    uint64_t now = counter();
    if (!enabled() || !timer.armed) return;
    if (now < timer.due) {
        arm(index);
        return;
    }
    Nanoseconds earliest = m_scheduler.now() + k_min_interval;
    if (timer.periodic() && timer.period > 0) {
        timer.due += (now - timer.due) / timer.period * timer.period + timer.period;
        timer.comparator = timer.narrow() ? timer.due & 0xFFFF'FFFF : timer.due;
    } else if (timer.narrow()) {
        timer.due += uint64_t{1} << 32;
    } else {
        timer.armed = false;
    }
    if (timer.armed) m_timers[index]->arm(std::max(time_of(timer.due), earliest));
    if (timer.level()) {
        m_status |= uint64_t{1} << index;
        update_line(index);
    } else if (timer.config & k_timer_enable) {
        unsigned gsi = route(index);
        m_irqs.set_line(gsi, true);
        m_irqs.set_line(gsi, false);
    }
}

void Hpet::update_line(unsigned index) noexcept {
    Comparator& timer = m_comparators[index];
    unsigned gsi = route(index);
    bool wanted = timer.level() && (timer.config & k_timer_enable) && (m_status >> index & 1);
    if (timer.asserted && (!wanted || timer.gsi != gsi)) {
        m_irqs.set_line(timer.gsi, false);
        timer.asserted = false;
    }
    if (wanted && !timer.asserted) {
        m_irqs.set_line(gsi, true);
        timer.asserted = true;
        timer.gsi = gsi;
    }
}

void Hpet::write_config(uint64_t value) {
    uint64_t before = m_config;
    if ((value ^ before) & k_conf_enable) {
        m_counter = counter();
        m_started = m_scheduler.now();
    }
    m_config = value & k_conf_writable;
    if ((m_config ^ before) & k_conf_legacy) {
        if (m_on_legacy) m_on_legacy(legacy());
        for (unsigned i = 0; i < k_timers; ++i) update_line(i);
    }
    for (unsigned i = 0; i < k_timers; ++i) arm(i);
}

// 2.3.8, Tn_VAL_SET_CNF: a periodic timer's next match is written only with it; each write sets the period.
void Hpet::write_comparator(unsigned index, uint64_t value, uint64_t mask) {
    Comparator& timer = m_comparators[index];
    if (timer.narrow()) {
        if (!(mask & 0xFFFF'FFFF)) return;
        mask = ~uint64_t{0};
        value &= 0xFFFF'FFFF;
    }
    if (!timer.periodic() || (timer.config & k_timer_value_set)) {
        timer.comparator = merged(timer.comparator, value, mask);
        timer.config &= ~k_timer_value_set;
        schedule(index);
    }
    if (timer.periodic()) timer.period = merged(timer.period, value, mask);
}

uint64_t Hpet::read_register(uint64_t offset) const noexcept {
    switch (offset) {
    case GCAP_ID: return k_capabilities;
    case GEN_CONF: return m_config;
    case GINTR_STA: return m_status;
    case MAIN_CNT: return counter();
    default: break;
    }
    uint64_t index = (offset - TIMER_BASE) / TIMER_STRIDE;
    if (offset < TIMER_BASE || index >= k_timers) return 0;
    Comparator const& timer = m_comparators[index];
    switch (offset % TIMER_STRIDE) {
    case TIMER_CONF: return (timer.config & ~k_timer_value_set) | k_timer_fixed;
    case TIMER_COMP: return timer.comparator;
    default: return 0;
    }
}

void Hpet::write_register(uint64_t offset, uint64_t value, uint64_t mask) {
    switch (offset) {
    case GEN_CONF: write_config(merged(m_config, value, mask)); return;
    case GINTR_STA:
        m_status &= ~(value & mask);
        for (unsigned i = 0; i < k_timers; ++i) update_line(i);
        return;
    case MAIN_CNT:
        m_counter = merged(counter(), value, mask);
        m_started = m_scheduler.now();
        for (unsigned i = 0; i < k_timers; ++i) schedule(i);
        return;
    default: break;
    }
    uint64_t index = (offset - TIMER_BASE) / TIMER_STRIDE;
    if (offset < TIMER_BASE || index >= k_timers) return;
    Comparator& timer = m_comparators[index];
    switch (offset % TIMER_STRIDE) {
    case TIMER_CONF: {
        uint64_t config = merged(timer.config, value, mask) & k_timer_writable;
        auto wanted = static_cast<unsigned>((config & k_timer_route) >> k_timer_route_shift);
        // An interrupt that the timer cannot have does not stick (2.3.8, Tn_INT_ROUTE_CNF).
        if (!(k_timer_routes >> wanted & 1)) config &= ~k_timer_route;
        timer.config = config;
        if (timer.narrow()) {
            timer.comparator &= 0xFFFF'FFFF;
            timer.period &= 0xFFFF'FFFF;
        }
        if (!timer.level()) m_status &= ~(uint64_t{1} << index);
        update_line(static_cast<unsigned>(index));
        schedule(static_cast<unsigned>(index));
        return;
    }
    case TIMER_COMP: write_comparator(static_cast<unsigned>(index), value, mask); return;
    default: return;
    }
}

IoStatus Hpet::mmio_read(uint64_t offset, MutBytes to) {
    if (to.size() != 4 && to.size() != 8) return IoStatus::BadSize;
    if (offset % to.size() != 0) return IoStatus::Unaligned;
    if (offset >= k_window_size) return IoStatus::NoSuchRegister;
    store_le_sized(to, read_register(align_down(offset, 8)) >> (offset % 8 * 8));
    return IoStatus::Ok;
}

IoStatus Hpet::mmio_write(uint64_t offset, Bytes from) {
    if (from.size() != 4 && from.size() != 8) return IoStatus::BadSize;
    if (offset % from.size() != 0) return IoStatus::Unaligned;
    if (offset >= k_window_size) return IoStatus::NoSuchRegister;
    uint64_t shift = offset % 8 * 8;
    uint64_t mask = from.size() == 8 ? ~uint64_t{0} : 0xFFFF'FFFFULL << shift;
    write_register(align_down(offset, 8), load_le_sized(from) << shift, mask);
    return IoStatus::Ok;
}

void Hpet::reset(ResetKind) noexcept {
    m_status = 0;
    for (unsigned i = 0; i < k_timers; ++i) {
        m_timers[i]->disarm();
        update_line(i);
        m_comparators[i] = Comparator{};
        m_comparators[i].comparator = ~uint64_t{0};
    }
    if (legacy() && m_on_legacy) m_on_legacy(false);
    m_config = 0;
    m_counter = 0;
    m_started = 0;
}

Result<ByteVector> Hpet::save() const {
    HpetState state;
    state.config = m_config;
    state.status = m_status;
    state.counter = counter();
    for (unsigned i = 0; i < k_timers; ++i) {
        Comparator const& timer = m_comparators[i];
        state.timers[i] = {timer.config, timer.comparator, timer.period, timer.armed, timer.due};
    }
    return encode_fields(state);
}

// Lines of level-triggered timers are driven again; edges that were sent are in the interrupt controllers' state.
Result<void> Hpet::restore(Bytes bytes) {
    HpetState state;
    TRY(decode_fields(bytes, state));
    bool sound = !(state.config & ~k_conf_writable) && !(state.status >> k_timers);
    for (unsigned i = 0; i < k_timers; ++i) {
        HpetTimerState const& timer = state.timers[i];
        bool narrow = timer.config & k_timer_32bit;
        auto gsi = static_cast<unsigned>((timer.config & k_timer_route) >> k_timer_route_shift);
        sound = sound && !(timer.config & ~k_timer_writable) && (gsi == 0 || (k_timer_routes >> gsi & 1)) &&
                (!narrow || (timer.comparator >> 32 == 0 && timer.period >> 32 == 0)) &&
                ((timer.config & k_timer_level) || !(state.status >> i & 1));
    }
    if (!sound) return make_error(ErrorCode::Corrupt, "saved state of the HPET is out of range");
    bool was_legacy = legacy();
    m_config = state.config;
    m_status = state.status;
    m_counter = state.counter;
    m_started = m_scheduler.now();
    if (was_legacy != legacy() && m_on_legacy) m_on_legacy(legacy());
    for (unsigned i = 0; i < k_timers; ++i) {
        Comparator& timer = m_comparators[i];
        HpetTimerState const& from = state.timers[i];
        timer.config = from.config;
        timer.comparator = from.comparator;
        timer.period = from.period;
        timer.armed = from.armed;
        timer.due = from.due;
        update_line(i);
        arm(i);
    }
    return {};
}

} // namespace coffer::devices
