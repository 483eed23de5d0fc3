#include "devices/chipset/pit.hpp"

#include <algorithm>

#include "base/tagged.hpp"

namespace coffer::devices {

using namespace pit;

namespace {

__extension__ using Wide = unsigned __int128;

// A guest cannot make the I/O thread busier than this by a small count; rises in between are merged.
constexpr Nanoseconds k_min_interval = 50 * k_ns_per_us;
// Half a period of the refresh request, which counter 1 makes on a PC (15.085 us; ICH9, 13.7.1 bit 4).
constexpr Nanoseconds k_refresh_toggle = 15'085;

PitChannel::Tick tick_of(Nanoseconds time) {
    return static_cast<PitChannel::Tick>(Wide{static_cast<uint64_t>(time)} * k_hz / uint64_t{k_ns_per_s});
}
// The first nanosecond of a tick.
Nanoseconds time_of(PitChannel::Tick tick) {
    return static_cast<Nanoseconds>((Wide{static_cast<uint64_t>(tick)} * uint64_t{k_ns_per_s} + k_hz - 1) / k_hz);
}

} // namespace

Pit::Pit(Scheduler& scheduler, IrqLine irq0)
    : m_scheduler(scheduler), m_irq0(irq0), m_timer(scheduler.make_timer([this] { on_timer(); })),
      m_channels(reset_channels()) {}

std::array<PitChannel, k_channels> Pit::reset_channels() noexcept {
    std::array<PitChannel, k_channels> channels;
    // The speaker's gate is bit 0 of port 0x61, which is 0 after reset.
    channels[k_speaker_channel].set_gate(false, 0);
    return channels;
}

PitChannel::Tick Pit::now() const noexcept {
    return tick_of(m_scheduler.now());
}

void Pit::arm() noexcept {
    PitChannel::Tick tick = now();
    m_next_rise = m_irq0_connected ? m_channels[0].next_rise(tick) : std::nullopt;
    if (!m_next_rise) {
        m_timer->disarm();
        return;
    }
    m_timer->arm(std::max(time_of(*m_next_rise), m_scheduler.now() + k_min_interval));
}

void Pit::update_irq0() noexcept {
    if (m_irq0_connected) m_irq0.set(m_channels[0].output(now()));
    arm();
}

void Pit::on_timer() noexcept {
    if (!m_next_rise || now() < *m_next_rise) {
        arm();
        return;
    }
    // The low phase before a rise can be a single tick; the line shows it only here.
    m_irq0.set(false);
    m_irq0.set(true);
    arm();
}

void Pit::connect_irq0(bool connected) noexcept {
    if (connected == m_irq0_connected) return;
    if (!connected) m_irq0.set(false);
    m_irq0_connected = connected;
    update_irq0();
}

void Pit::write_control(uint8_t value) noexcept {
    PitChannel::Tick tick = now();
    unsigned counter = value >> k_control_counter_shift;
    if (counter == k_read_back) {
        for (unsigned i = 0; i < k_channels; ++i) {
            if (!(value >> (k_read_back_counter_shift + i) & 1)) continue;
            if (!(value & k_read_back_no_count)) m_channels[i].latch_count(tick);
            if (!(value & k_read_back_no_status)) m_channels[i].latch_status(tick);
        }
        return;
    }
    auto access = static_cast<Access>(value >> k_control_access_shift & 3);
    if (access == Access::Latch) {
        m_channels[counter].latch_count(tick);
        return;
    }
    unsigned mode = value >> k_control_mode_shift & 7;
    if (mode > static_cast<unsigned>(Mode::HardwareStrobe)) mode &= 3; // modes 2 and 3 do not look at bit 3
    m_channels[counter].write_control(access, static_cast<Mode>(mode), value & k_control_bcd);
    if (counter == 0) update_irq0();
}

IoStatus Pit::read(uint16_t offset, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    if (offset >= k_channels) return IoStatus::NoSuchRegister;
    to[0] = static_cast<std::byte>(m_channels[offset].read(now()));
    return IoStatus::Ok;
}

IoStatus Pit::write(uint16_t offset, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    auto value = static_cast<uint8_t>(from[0]);
    if (offset == CONTROL_WORD) {
        write_control(value);
        return IoStatus::Ok;
    }
    if (offset > CONTROL_WORD) return IoStatus::NoSuchRegister;
    m_channels[offset].write(value, now());
    if (offset == COUNTER0) update_irq0();
    return IoStatus::Ok;
}

IoStatus Pit::system_control_read(uint16_t, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    uint8_t value = m_system_control;
    if (m_scheduler.now() / k_refresh_toggle % 2) value |= k_sc_refresh_toggle;
    if (m_channels[k_speaker_channel].output(now())) value |= k_sc_output2;
    to[0] = static_cast<std::byte>(value);
    return IoStatus::Ok;
}

IoStatus Pit::system_control_write(uint16_t, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    m_system_control = static_cast<uint8_t>(from[0]) & k_sc_writable;
    m_channels[k_speaker_channel].set_gate(m_system_control & k_sc_gate2, now());
    return IoStatus::Ok;
}

void Pit::reset(ResetKind) noexcept {
    m_channels = reset_channels();
    m_system_control = 0;
    m_irq0_connected = true;
    m_irq0.set(false);
    m_next_rise.reset();
    m_timer->disarm();
}

Result<ByteVector> Pit::save() const {
    PitState state;
    for (unsigned i = 0; i < k_channels; ++i) state.channels[i] = m_channels[i].saved(now());
    state.system_control = m_system_control;
    state.irq0_connected = m_irq0_connected;
    return encode_fields(state);
}

// The line's level is in the interrupt controllers' own state.
Result<void> Pit::restore(Bytes bytes) {
    PitState state;
    TRY(decode_fields(bytes, state));
    std::array<PitChannel, k_channels> channels;
    for (unsigned i = 0; i < k_channels; ++i) channels[i] = TRY(PitChannel::loaded(state.channels[i], now()));
    bool gates = state.channels[0].gate && state.channels[1].gate &&
                 state.channels[2].gate == ((state.system_control & k_sc_gate2) != 0);
    if (!gates || (state.system_control & ~k_sc_writable))
        return make_error(ErrorCode::Corrupt, "saved state of the timer 8254 is out of range");
    m_channels = channels;
    m_system_control = state.system_control;
    m_irq0_connected = state.irq0_connected;
    arm();
    return {};
}

} // namespace coffer::devices
