#include "devices/chipset/pm_block.hpp"

#include <algorithm>
#include <limits>

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "devices/chipset/pm_block_state.hpp"

namespace coffer::devices {

using namespace pm;

namespace {
__extension__ using Wide = unsigned __int128;
}

PmBlock::PmBlock(Scheduler& scheduler, IrqLine sci, MachineControl& control, PmTimerWidth width)
    : m_scheduler(scheduler), m_sci(sci), m_machine(control), m_width(width),
      m_timer(scheduler.make_timer([this] { update_sci(); })), m_timer_start(scheduler.now()) {}

uint64_t PmBlock::timer_count() const noexcept {
    auto elapsed = static_cast<uint64_t>(m_scheduler.now() - m_timer_start);
    return static_cast<uint64_t>(Wide{elapsed} * k_timer_hz / uint64_t{k_ns_per_s});
}

uint32_t PmBlock::status() const noexcept {
    return m_status | (overflows() != m_seen_overflows ? TMROF : 0);
}

// The SCI's level, and the timer for the next overflow that would raise it.
void PmBlock::update_sci() noexcept {
    m_status = status();
    m_seen_overflows = overflows();
    m_sci.set((m_status & m_enable) != 0);
    if (!(m_enable & TMROF) || (m_status & TMROF)) {
        m_timer->disarm();
        return;
    }
    uint64_t count = (overflows() + 1) << (static_cast<unsigned>(m_width) - 1);
    m_timer->arm(m_timer_start +
                 static_cast<Nanoseconds>((Wide{count} * uint64_t{k_ns_per_s} + k_timer_hz - 1) / k_timer_hz));
}

void PmBlock::press_power_button() {
    m_status |= PWRBTN;
    update_sci();
}

uint32_t PmBlock::read_register(uint16_t offset) const noexcept {
    switch (offset) {
    case PM1_STS: return status() | m_enable << 16;
    case PM1_CNT: return m_control | SCI_EN;
    case PM1_TMR: {
        auto count = static_cast<uint32_t>(timer_count());
        return m_width == PmTimerWidth::Bits24 ? count & 0xFF'FFFF : count;
    }
    case GPE0_EN: return static_cast<uint32_t>(m_gpe0_enable);
    case GPE0_EN + 4: return static_cast<uint32_t>(m_gpe0_enable >> 32);
    case SMI_EN: return m_smi_enable;
    default: return 0;
    }
}

void PmBlock::write_control(uint32_t value) {
    m_control = value & k_control_writable;
    if (!(value & SLP_EN)) return;
    unsigned type = (value & k_sleep_type) >> k_sleep_type_shift;
    if (type == k_sleep_type_s5 || type == k_sleep_type_s5_ich9) {
        m_machine.request_power_off();
        return;
    }
    static log::RateLimit limit;
    if (limit.allow()) log::warning("pm: guest asked for sleep type {}, which this machine does not have", type);
}

void PmBlock::write_register(uint16_t offset, uint32_t value, uint32_t mask) {
    switch (offset) {
    case PM1_STS:
        m_status = status() & ~(value & mask & 0xFFFF);
        m_seen_overflows = overflows();
        m_enable = ((m_enable & ~(mask >> 16)) | ((value & mask) >> 16)) & k_pm1_enable_writable;
        update_sci();
        return;
    case PM1_CNT: write_control((m_control & ~mask) | (value & mask)); return;
    case GPE0_EN: m_gpe0_enable = (m_gpe0_enable & ~uint64_t{mask}) | (value & mask); return;
    case GPE0_EN + 4: m_gpe0_enable = (m_gpe0_enable & ~(uint64_t{mask} << 32)) | uint64_t{value & mask} << 32; return;
    case SMI_EN: m_smi_enable = (m_smi_enable & ~mask) | (value & mask); return;
    default: return; // read-only, reserved, or a status without a source
    }
}

IoStatus PmBlock::pio_read(uint16_t offset, MutBytes to) {
    if (to.empty() || to.size() > 4) return IoStatus::BadSize;
    if (offset + to.size() > k_ports) return IoStatus::NoSuchRegister;
    for (size_t i = 0; i < to.size(); ++i) {
        auto at = static_cast<uint16_t>(offset + i);
        to[i] = static_cast<std::byte>(read_register(static_cast<uint16_t>(at & ~3U)) >> (at % 4 * 8));
    }
    return IoStatus::Ok;
}

IoStatus PmBlock::pio_write(uint16_t offset, Bytes from) {
    if (from.empty() || from.size() > 4) return IoStatus::BadSize;
    if (offset + from.size() > k_ports) return IoStatus::NoSuchRegister;
    // At most two registers, each written once with the bytes that fall on it.
    for (size_t i = 0; i < from.size();) {
        auto at = static_cast<uint16_t>(offset + i);
        unsigned shift = at % 4U * 8;
        size_t count = std::min(from.size() - i, size_t{4} - at % 4U);
        auto mask = static_cast<uint32_t>((uint64_t{1} << (count * 8)) - 1) << shift;
        auto value = static_cast<uint32_t>(load_le_sized(from.subspan(i, count))) << shift;
        write_register(static_cast<uint16_t>(at & ~3U), value, mask);
        i += count;
    }
    return IoStatus::Ok;
}

IoStatus PmBlock::apm_read(uint16_t offset, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    if (offset >= k_apm_ports) return IoStatus::NoSuchRegister;
    to[0] = static_cast<std::byte>(m_apm[offset]);
    return IoStatus::Ok;
}

IoStatus PmBlock::apm_write(uint16_t offset, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    if (offset >= k_apm_ports) return IoStatus::NoSuchRegister;
    m_apm[offset] = static_cast<uint8_t>(from[0]);
    return IoStatus::Ok;
}

void PmBlock::reset(ResetKind) noexcept {
    m_status = 0;
    m_enable = 0;
    m_control = 0;
    m_gpe0_enable = 0;
    m_smi_enable = 0;
    m_apm.fill(0);
    m_timer_start = m_scheduler.now();
    m_seen_overflows = 0;
    update_sci();
}

Result<ByteVector> PmBlock::save() const {
    PmBlockState state;
    state.status = status();
    state.enable = m_enable;
    state.control = m_control;
    state.gpe0_enable = m_gpe0_enable;
    state.smi_enable = m_smi_enable;
    state.apm = m_apm;
    state.timer_ns = static_cast<uint64_t>(m_scheduler.now() - m_timer_start);
    return encode_fields(state);
}

Result<void> PmBlock::restore(Bytes bytes) {
    constexpr auto k_max_ns = static_cast<uint64_t>(std::numeric_limits<Nanoseconds>::max() / 4);
    PmBlockState state;
    TRY(decode_fields(bytes, state));
    if ((state.status & ~k_pm1_status_all) || (state.enable & ~k_pm1_enable_writable) ||
        (state.control & ~k_control_writable) || state.timer_ns > k_max_ns)
        return make_error(ErrorCode::Corrupt, "saved state of the power management block is out of range");
    m_status = state.status;
    m_enable = state.enable;
    m_control = state.control;
    m_gpe0_enable = state.gpe0_enable;
    m_smi_enable = state.smi_enable;
    m_apm = state.apm;
    m_timer_start = m_scheduler.now() - static_cast<Nanoseconds>(state.timer_ns);
    m_seen_overflows = overflows();
    update_sci();
    return {};
}

} // namespace coffer::devices
