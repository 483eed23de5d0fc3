#include "devices/chipset/pit_channel.hpp"

namespace coffer::devices {

using namespace pit;

namespace {

uint32_t from_bcd(uint16_t digits) {
    return (digits & 0xFU) + (digits >> 4 & 0xFU) * 10 + (digits >> 8 & 0xFU) * 100 + (digits >> 12 & 0xFU) * 1000;
}
uint16_t to_bcd(uint32_t value) {
    return static_cast<uint16_t>(value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 | value / 1000 % 10 << 12);
}
constexpr uint32_t modulus(bool bcd) {
    return bcd ? 10'000 : 0x1'0000;
}

} // namespace

void PitChannel::write_control(Access access, Mode mode, bool bcd) noexcept {
    m_access = access;
    m_mode = mode;
    m_bcd = bcd;
    m_loaded = false;
    m_running = false;
    m_elapsed = 0;
    m_low_written = false;
    m_high_next = false;
    m_latched_bytes = 0;
    m_latched_status.reset();
}

void PitChannel::start(Tick now) noexcept {
    m_start = now;
    m_running = true;
}

void PitChannel::load(uint16_t written, Tick now) noexcept {
    uint32_t value = m_bcd ? from_bcd(written) : written;
    m_count = value == 0 ? modulus(m_bcd) : value;
    m_loaded = true;
    // A one-shot in progress goes on with its old start; the new count counts at the next trigger.
    if (triggered_by_gate()) return;
    m_running = false;
    m_elapsed = 0;
    if (m_gate) start(now);
}

void PitChannel::write(uint8_t value, Tick now) noexcept {
    switch (m_access) {
    case Access::Low: load(value, now); break;
    case Access::High: load(static_cast<uint16_t>(value << 8), now); break;
    case Access::LowHigh:
        if (!m_low_written) {
            m_low_byte = value;
            m_low_written = true;
            // In mode 0 the first byte stops the counter (8254, "Mode 0").
            if (m_mode == Mode::TerminalCount) {
                m_loaded = false;
                m_running = false;
                m_elapsed = 0;
            }
        } else {
            m_low_written = false;
            load(static_cast<uint16_t>(m_low_byte | value << 8), now);
        }
        break;
    case Access::Latch: break;
    }
}

uint16_t PitChannel::count(Tick now) const noexcept {
    if (m_count == 0) return 0;
    auto ticks = static_cast<uint64_t>(elapsed(now));
    uint32_t wrap = modulus(m_bcd);
    uint32_t value;
    switch (m_mode) {
    case Mode::RateGenerator: value = m_count - static_cast<uint32_t>(ticks % m_count); break;
    case Mode::SquareWave: {
        // Counts down by two in each half.
        auto half = static_cast<uint32_t>(ticks % m_count);
        uint32_t high = (m_count + 1) / 2;
        value = (m_count & ~1U) - 2 * (half < high ? half : half - high);
        break;
    }
    default: value = static_cast<uint32_t>((m_count + wrap - ticks % wrap) % wrap); break;
    }
    value %= wrap;
    return m_bcd ? to_bcd(value) : static_cast<uint16_t>(value);
}

void PitChannel::latch_count(Tick now) noexcept {
    if (m_latched_bytes) return;
    m_latched_count = count(now);
    m_latched_bytes = m_access == Access::LowHigh ? 2 : 1;
}

void PitChannel::latch_status(Tick now) noexcept {
    if (m_latched_status) return;
    auto status = static_cast<uint8_t>(static_cast<unsigned>(m_access) << k_control_access_shift |
                                       static_cast<unsigned>(m_mode) << k_control_mode_shift);
    if (m_bcd) status |= k_control_bcd;
    if (output(now)) status |= k_status_output;
    if (!m_loaded) status |= k_status_null_count;
    m_latched_status = status;
}

uint8_t PitChannel::read(Tick now) noexcept {
    if (m_latched_status) {
        uint8_t status = *m_latched_status;
        m_latched_status.reset();
        return status;
    }
    uint16_t value = m_latched_bytes ? m_latched_count : count(now);
    bool high = m_access == Access::High;
    if (m_access == Access::LowHigh) {
        high = m_high_next;
        m_high_next = !m_high_next;
    }
    if (m_latched_bytes) --m_latched_bytes;
    return static_cast<uint8_t>(high ? value >> 8 : value);
}

void PitChannel::set_gate(bool gate, Tick now) noexcept {
    if (gate == m_gate) return;
    m_gate = gate;
    if (!m_loaded) return;
    if (triggered_by_gate()) {
        if (gate) start(now);
    } else if (!gate) {
        m_elapsed = elapsed(now);
        m_running = false;
    } else if (periodic()) {
        start(now); // reloads
    } else {
        m_start = now - m_elapsed; // goes on
        m_running = true;
    }
}

bool PitChannel::output(Tick now) const noexcept {
    if (!m_loaded) return m_mode != Mode::TerminalCount;
    auto ticks = static_cast<uint64_t>(elapsed(now));
    switch (m_mode) {
    case Mode::TerminalCount: return ticks >= m_count;
    case Mode::OneShot: return !m_running || ticks >= m_count;
    case Mode::RateGenerator: return !m_gate || ticks % m_count != m_count - 1;
    case Mode::SquareWave: return !m_gate || ticks % m_count < (m_count + 1) / 2;
    case Mode::SoftwareStrobe:
    case Mode::HardwareStrobe: return !m_running || ticks != m_count;
    }
    return true;
}

std::optional<PitChannel::Tick> PitChannel::next_rise(Tick now) const noexcept {
    if (!m_loaded || !m_running) return std::nullopt;
    Tick ticks = elapsed(now);
    Tick period = m_count;
    switch (m_mode) {
    case Mode::TerminalCount:
    case Mode::OneShot:
        if (ticks < period) return m_start + period;
        return std::nullopt;
    case Mode::RateGenerator:
    case Mode::SquareWave: return m_start + (ticks / period + 1) * period;
    case Mode::SoftwareStrobe:
    case Mode::HardwareStrobe:
        if (ticks <= period) return m_start + period + 1;
        return std::nullopt;
    }
    return std::nullopt;
}

PitChannelState PitChannel::saved(Tick now) const {
    PitChannelState state;
    state.mode = static_cast<uint8_t>(m_mode);
    state.access = static_cast<uint8_t>(m_access);
    state.bcd = m_bcd;
    state.gate = m_gate;
    state.loaded = m_loaded;
    state.running = m_running;
    state.count = m_count;
    state.elapsed = static_cast<uint64_t>(elapsed(now));
    state.low_written = m_low_written;
    state.low_byte = m_low_byte;
    state.high_next = m_high_next;
    state.latched_bytes = m_latched_bytes;
    state.latched_count = m_latched_count;
    state.status_latched = m_latched_status.has_value();
    state.latched_status = m_latched_status.value_or(0);
    return state;
}

Result<PitChannel> PitChannel::loaded(PitChannelState const& state, Tick now) {
    constexpr uint64_t k_max_elapsed = 1ULL << 60;
    bool sound = state.mode <= static_cast<uint8_t>(Mode::HardwareStrobe) && state.access >= 1 && state.access <= 3 &&
                 state.count <= modulus(state.bcd) && (state.count > 0 || (!state.loaded && !state.running)) &&
                 state.elapsed < k_max_elapsed && state.latched_bytes <= 2;
    if (!sound) return make_error(ErrorCode::Corrupt, "saved state of the timer 8254 is out of range");
    PitChannel channel;
    channel.m_mode = static_cast<Mode>(state.mode);
    channel.m_access = static_cast<Access>(state.access);
    channel.m_bcd = state.bcd;
    channel.m_gate = state.gate;
    channel.m_loaded = state.loaded;
    channel.m_running = state.running;
    channel.m_count = state.count;
    channel.m_start = now - static_cast<Tick>(state.elapsed);
    channel.m_elapsed = static_cast<Tick>(state.elapsed);
    channel.m_low_written = state.low_written;
    channel.m_low_byte = state.low_byte;
    channel.m_high_next = state.high_next;
    channel.m_latched_bytes = state.latched_bytes;
    channel.m_latched_count = state.latched_count;
    if (state.status_latched) channel.m_latched_status = state.latched_status;
    return channel;
}

} // namespace coffer::devices
