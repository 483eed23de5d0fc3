#include "devices/chipset/rtc.hpp"

#include <algorithm>
#include <utility>

#include "base/clock.hpp"
#include "base/tagged.hpp"
#include "devices/chipset/rtc_state.hpp"

namespace coffer::devices {

using namespace rtc;

namespace {

constexpr uint64_t k_mib = 1 << 20;
constexpr uint64_t k_64k = 1 << 16;
constexpr uint8_t k_interrupts = B_PIE | B_AIE | B_UIE;

void put16(Bank& bank, uint8_t at, uint64_t value) {
    bank[at] = static_cast<uint8_t>(value);
    bank[at + 1] = static_cast<uint8_t>(value >> 8);
}

bool is_time(uint8_t index) {
    return index == CENTURY ||
           (index <= YEAR && index != SECONDS_ALARM && index != MINUTES_ALARM && index != HOURS_ALARM);
}

} // namespace

Rtc::Rtc(Config config, Scheduler& scheduler, IrqLine irq8)
    : m_config(std::move(config)), m_scheduler(scheduler), m_irq(irq8),
      m_timer(scheduler.make_timer([this] { on_timer(); })) {
    if (!m_config.utc) m_config.utc = [] { return wall_clock_seconds(); };
    m_utc_offset = m_config.utc_offset;
    fill_memory();
    set_time(m_config.utc() + m_utc_offset, 0);
}

void Rtc::fill_memory() noexcept {
    m_memory.fill(0);
    m_extended.fill(0);
    m_memory[REGISTER_A] = k_a_reset;
    m_memory[REGISTER_B] = B_24H;
    put16(m_memory, BASE_MEMORY, std::min<uint64_t>(m_config.low_ram / 1024, 640));
    uint64_t above_1m = m_config.low_ram > k_mib ? (m_config.low_ram - k_mib) / 1024 : 0;
    put16(m_memory, EXTENDED_MEMORY, std::min<uint64_t>(above_1m, 0xFFFF));
    put16(m_memory, EXTENDED_MEMORY_COPY, std::min<uint64_t>(above_1m, 0xFFFF));
    uint64_t above_16m = m_config.low_ram > 16 * k_mib ? (m_config.low_ram - 16 * k_mib) / k_64k : 0;
    put16(m_memory, MEMORY_ABOVE_16M, std::min<uint64_t>(above_16m, 0xFFFF));
    uint64_t above_4g = std::min<uint64_t>(m_config.high_ram / k_64k, 0xFF'FFFF);
    put16(m_memory, MEMORY_ABOVE_4G, above_4g);
    m_memory[MEMORY_ABOVE_4G + 2] = static_cast<uint8_t>(above_4g >> 16);
    m_memory[CPUS] = static_cast<uint8_t>(std::min(m_config.cpus - 1, 0xFFU));
}

bool Rtc::running(Bank const& bank) noexcept {
    return !(bank[REGISTER_B] & B_SET) && (bank[REGISTER_A] & A_DIVIDER) == A_DIVIDER_32K;
}

void Rtc::set_time(int64_t seconds, Nanoseconds phase) noexcept {
    m_seconds = seconds;
    m_started = m_scheduler.now() - phase;
    m_seen_second = seconds;
    m_seen_tick = periodic_ticks();
}

void Rtc::take_time(Nanoseconds phase) {
    int64_t seconds = load_time(m_memory, format());
    m_utc_offset = seconds - m_config.utc();
    set_time(seconds, phase);
}

int64_t Rtc::seconds() const noexcept {
    return m_seconds + (m_scheduler.now() - m_started) / k_ns_per_s;
}
Nanoseconds Rtc::phase() const noexcept {
    return (m_scheduler.now() - m_started) % k_ns_per_s;
}

unsigned Rtc::periodic_hz() const noexcept {
    unsigned rate = m_memory[REGISTER_A] & A_RATE;
    if (rate == 0) return 0;
    // With a 32.768 kHz crystal rates 1 and 2 repeat 8 and 9 (MC146818A, table 5).
    return 32'768U >> ((rate <= 2 ? rate + 7 : rate) - 1);
}

uint64_t Rtc::periodic_ticks() const noexcept {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>(Wide{static_cast<uint64_t>(m_scheduler.now() - m_started)} * periodic_hz() /
                                 uint64_t{k_ns_per_s});
}

uint8_t Rtc::current_flags() const noexcept {
    uint8_t flags = m_flags;
    if (!running()) return flags;
    if (periodic_ticks() != m_seen_tick) flags |= C_PF;
    if (seconds() != m_seen_second) {
        flags |= C_UF;
        int64_t alarm = next_alarm(m_memory, m_seen_second, format());
        if (alarm >= 0 && alarm <= seconds()) flags |= C_AF;
    }
    return flags;
}

void Rtc::advance() {
    m_flags = current_flags();
    m_seen_second = seconds();
    m_seen_tick = periodic_ticks();
}

void Rtc::update_irq() noexcept {
    if (m_irq_connected) m_irq.set(m_flags & m_memory[REGISTER_B] & k_interrupts);
}

// For the next event whose interrupt is enabled and not already pending.
void Rtc::arm() noexcept {
    auto wanted = static_cast<uint8_t>(m_memory[REGISTER_B] & k_interrupts & ~m_flags);
    if (!running() || !wanted) {
        m_timer->disarm();
        return;
    }
    std::optional<Nanoseconds> next;
    auto sooner = [&](Nanoseconds time) { next = next ? std::min(*next, time) : time; };
    if (wanted & B_UIE) sooner(m_started + (seconds() - m_seconds + 1) * k_ns_per_s);
    if (wanted & B_AIE) {
        int64_t alarm = next_alarm(m_memory, seconds(), format());
        if (alarm >= 0) sooner(m_started + (alarm - m_seconds) * k_ns_per_s);
    }
    if (unsigned hz = wanted & B_PIE ? periodic_hz() : 0) {
        __extension__ using Wide = unsigned __int128;
        Wide ticks = Wide{periodic_ticks()} + 1;
        sooner(m_started + static_cast<Nanoseconds>((ticks * uint64_t{k_ns_per_s} + hz - 1) / hz));
    }
    if (next)
        m_timer->arm(*next);
    else
        m_timer->disarm();
}

void Rtc::on_timer() {
    advance();
    update_irq();
    arm();
}

uint8_t Rtc::read_register(uint8_t index) {
    switch (index) {
    case REGISTER_A: {
        bool updating = running() && phase() >= k_ns_per_s - k_uip_ns;
        return static_cast<uint8_t>(m_memory[REGISTER_A] | (updating ? A_UIP : 0));
    }
    case REGISTER_C: {
        advance();
        uint8_t flags = m_flags;
        if (flags & m_memory[REGISTER_B] & k_interrupts) flags |= C_IRQF;
        m_flags = 0;
        update_irq();
        arm();
        return flags;
    }
    case REGISTER_D: return D_VRT;
    default: break;
    }
    if (!is_time(index) || !running()) return m_memory[index];
    Bank now = m_memory;
    store_time(now, seconds(), format());
    return now[index];
}

// Registers A and B start and stop the clock: stopped, the time is what its bytes say.
void Rtc::write_control(uint8_t index, uint8_t value) {
    advance();
    bool was_running = running();
    if (was_running) store_time(m_memory, seconds(), format());
    Nanoseconds kept_phase = phase();
    int64_t kept_seconds = seconds();
    m_memory[index] = value;
    if (running() && was_running)
        set_time(kept_seconds, kept_phase);
    else if (running())
        take_time(0);
    update_irq();
    arm();
}

void Rtc::write_register(uint8_t index, uint8_t value) {
    switch (index) {
    case REGISTER_A: write_control(index, value & static_cast<uint8_t>(~A_UIP)); return;
    case REGISTER_B:
        // Setting SET clears UIE (MC146818A, "Register B").
        if (value & B_SET) value &= static_cast<uint8_t>(~B_UIE);
        write_control(index, value);
        return;
    case REGISTER_C:
    case REGISTER_D: return;
    default: break;
    }
    if (is_time(index) && running()) {
        advance();
        store_time(m_memory, seconds(), format());
        m_memory[index] = value;
        take_time(phase());
    } else {
        advance();
        m_memory[index] = value;
    }
    arm();
}

IoStatus Rtc::pio_read(uint16_t offset, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    uint8_t value;
    switch (offset) {
    case DATA: value = read_register(m_index); break;
    case EXTENDED_INDEX: value = m_extended_index; break;
    case EXTENDED_DATA: value = m_extended[m_extended_index]; break;
    default: return IoStatus::NoSuchRegister; // the index is write-only (ICH9, 13.6.1)
    }
    to[0] = static_cast<std::byte>(value);
    return IoStatus::Ok;
}

IoStatus Rtc::pio_write(uint16_t offset, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    auto value = static_cast<uint8_t>(from[0]);
    switch (offset) {
    case INDEX: m_index = value & k_index_mask; break;
    case DATA: write_register(m_index, value); break;
    case EXTENDED_INDEX: m_extended_index = value & k_index_mask; break;
    case EXTENDED_DATA: m_extended[m_extended_index] = value; break;
    default: return IoStatus::NoSuchRegister;
    }
    return IoStatus::Ok;
}

void Rtc::resynchronise() {
    if (!running()) return;
    advance();
    set_time(m_config.utc() + m_utc_offset, phase());
    arm();
}

void Rtc::connect_irq8(bool connected) noexcept {
    if (connected == m_irq_connected) return;
    if (!connected) m_irq.set(false);
    m_irq_connected = connected;
    update_irq();
}

void Rtc::reset(ResetKind kind) noexcept {
    m_timer->disarm();
    m_flags = 0;
    m_index = 0;
    m_extended_index = 0;
    m_irq_connected = true;
    if (kind == ResetKind::Cold) {
        fill_memory();
        m_utc_offset = m_config.utc_offset;
        set_time(m_config.utc() + m_utc_offset, 0);
    } else {
        m_memory[REGISTER_B] &= static_cast<uint8_t>(~(k_interrupts | B_SQWE));
        m_seen_second = seconds();
        m_seen_tick = periodic_ticks();
    }
    update_irq();
}

Result<ByteVector> Rtc::save() const {
    RtcState state;
    state.index = m_index;
    state.extended_index = m_extended_index;
    state.memory = m_memory;
    state.extended = m_extended;
    if (running()) {
        store_time(state.memory, 0, format()); // live bytes mean nothing here
        state.phase_ns = static_cast<uint64_t>(phase());
    }
    state.offset_seconds = m_utc_offset;
    state.flags = current_flags();
    state.irq_connected = m_irq_connected;
    return encode_fields(state);
}

Result<void> Rtc::restore(Bytes bytes) {
    constexpr int64_t k_max_offset = int64_t{400'000} * 366 * 86'400;
    RtcState state;
    TRY(decode_fields(bytes, state));
    bool runs = running(state.memory);
    bool sound = !(state.index & ~k_index_mask) && !(state.extended_index & ~k_index_mask) &&
                 !(state.memory[REGISTER_A] & A_UIP) && !(state.flags & ~k_interrupts) &&
                 state.phase_ns < uint64_t{k_ns_per_s} && state.offset_seconds >= -k_max_offset &&
                 state.offset_seconds <= k_max_offset && (runs || state.phase_ns == 0);
    if (!sound) return make_error(ErrorCode::Corrupt, "saved state of the real-time clock is out of range");
    m_index = state.index;
    m_extended_index = state.extended_index;
    m_memory = state.memory;
    m_extended = state.extended;
    m_memory[REGISTER_C] = 0;
    m_memory[REGISTER_D] = 0;
    m_utc_offset = state.offset_seconds;
    set_time(m_config.utc() + m_utc_offset, static_cast<Nanoseconds>(state.phase_ns));
    m_flags = state.flags;
    m_irq_connected = state.irq_connected;
    update_irq();
    arm();
    return {};
}

} // namespace coffer::devices
