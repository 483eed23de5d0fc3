// The local APIC's register file: what MMIO (xAPIC) and MSR (x2APIC) accesses have in common, and where they differ.
#include "devices/chipset/local_apic.hpp"

namespace coffer::devices {

using namespace lapic;

namespace {
bool in_bank(uint16_t offset, Register bank) {
    return offset >= bank && offset < bank + 0x80 && offset % 16 == 0;
}
} // namespace

// LDR. In x2APIC mode it is fixed: cluster ID 31:16, one bit of 16 (SDM vol. 3, 11.12.10.2).
uint32_t LocalApic::logical_id() const noexcept {
    return x2apic() ? (m_index >> 4) << 16 | 1U << (m_index & 0xF) : m_registers.ldr;
}

std::optional<uint32_t> LocalApic::read_register(uint16_t offset) const noexcept {
    if (in_bank(offset, ISR)) return m_registers.isr.words[(offset - unsigned{ISR}) / 16];
    if (in_bank(offset, TMR)) return m_registers.tmr.words[(offset - unsigned{TMR}) / 16];
    if (in_bank(offset, IRR)) return m_registers.irr.words[(offset - unsigned{IRR}) / 16];
    switch (offset) {
    case ID: return x2apic() ? m_index : m_index << 24;
    case VERSION: return k_version;
    case TPR: return m_registers.tpr;
    case PPR: return priority();
    case LDR: return logical_id();
    case SVR: return m_registers.svr;
    case ESR: return m_registers.esr;
    case ICR_LOW: return static_cast<uint32_t>(m_registers.icr);
    case LVT_TIMER:
    case LVT_THERMAL:
    case LVT_PERFORMANCE:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR: return m_registers.lvt[lvt_index(offset)];
    case INITIAL_COUNT: return m_timer.initial_count();
    case CURRENT_COUNT: return m_timer.current_count();
    case DIVIDE_CONFIG: return m_registers.divide;
    default: break;
    }
    if (x2apic()) return std::nullopt;
    switch (offset) {
    case APR:
    case RRD:
    case EOI: return 0;
    case DFR: return m_registers.dfr;
    case ICR_HIGH: return static_cast<uint32_t>(m_registers.icr >> 32);
    default: return std::nullopt;
    }
}

void LocalApic::write_lvt(InterruptGuard const& guard, uint16_t offset, uint32_t value) {
    unsigned index = lvt_index(offset);
    value &= k_lvt_writable[index];
    if (!(m_registers.svr & k_svr_enabled)) value |= k_lvt_masked; // SDM vol. 3, 11.4.7.2
    m_registers.lvt[index] = value;
    if (offset == LVT_TIMER)
        m_timer.set_mode(static_cast<ApicTimerMode>((value & k_lvt_timer_mode) >> k_lvt_timer_shift));
    update(guard);
}

// False where there is no such register to write.
bool LocalApic::write_register(InterruptGuard const& guard, uint16_t offset, uint32_t value) {
    switch (offset) {
    case TPR:
        m_registers.tpr = static_cast<uint8_t>(value);
        update(guard);
        return true;
    case EOI: end_of_interrupt(guard); return true;
    case SVR:
        m_registers.svr = value & k_svr_writable;
        if (!(value & k_svr_enabled))
            for (uint32_t& entry : m_registers.lvt) entry |= k_lvt_masked;
        update(guard);
        return true;
    case ESR:
        m_registers.esr = m_registers.errors;
        m_registers.errors = 0;
        return true;
    case ICR_LOW:
        m_registers.icr = (m_registers.icr & 0xFFFF'FFFF'0000'0000) | (value & k_icr_writable);
        send_ipi(guard, m_registers.icr);
        return true;
    case LVT_TIMER:
    case LVT_THERMAL:
    case LVT_PERFORMANCE:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR: write_lvt(guard, offset, value); return true;
    case INITIAL_COUNT: m_timer.set_initial_count(value); return true;
    case DIVIDE_CONFIG:
        m_registers.divide = static_cast<uint8_t>(value & k_divide_writable);
        m_timer.set_divider(divider_shift(value));
        return true;
    default: break;
    }
    if (x2apic()) {
        if (offset != SELF_IPI) return false;
        send_ipi(guard, uint64_t{ToSelf} << k_icr_shorthand_shift | (value & 0xFF));
        return true;
    }
    switch (offset) {
    case ID: return true; // the ID is fixed
    case LDR: m_registers.ldr = value & 0xFF00'0000; return true;
    case DFR: m_registers.dfr = value | ~k_dfr_writable; return true;
    case ICR_HIGH: m_registers.icr = (m_registers.icr & 0xFFFF'FFFF) | uint64_t{value & 0xFF00'0000} << 32; return true;
    default: return false;
    }
}

IoStatus LocalApic::mmio_read(uint64_t offset, MutBytes to) {
    // Registers are 32 bits wide on 16-byte bounds; parts of one may be read.
    if (to.size() != 1 && to.size() != 2 && to.size() != 4) return IoStatus::BadSize;
    if (offset % 16 + to.size() > 4) return IoStatus::Unaligned;
    InterruptGuard guard(m_lock);
    if (!enabled() || x2apic() || offset >= k_window_size) return IoStatus::NoSuchRegister;
    auto value = read_register(static_cast<uint16_t>(offset & ~uint64_t{0xF}));
    if (!value) {
        raise_error(guard, k_error_illegal_register);
        return IoStatus::NoSuchRegister;
    }
    store_le_sized(to, *value >> (offset % 16 * 8));
    return IoStatus::Ok;
}

IoStatus LocalApic::mmio_write(uint64_t offset, Bytes from) {
    if (from.size() != 4) return IoStatus::BadSize;
    if (offset % 16 != 0) return IoStatus::Unaligned;
    InterruptGuard guard(m_lock);
    if (!enabled() || x2apic() || offset >= k_window_size) return IoStatus::NoSuchRegister;
    if (!write_register(guard, static_cast<uint16_t>(offset), load_le<uint32_t>(from))) {
        raise_error(guard, k_error_illegal_register);
        return IoStatus::NoSuchRegister;
    }
    return IoStatus::Ok;
}

bool LocalApic::read_x2apic(uint32_t msr, uint64_t& value) noexcept {
    if (msr < k_msr_first || msr > k_msr_last) return false;
    InterruptGuard guard(m_lock);
    if (!x2apic()) return false;
    auto offset = static_cast<uint16_t>((msr - k_msr_first) << 4);
    auto read = read_register(offset);
    if (!read) return false;
    value = offset == ICR_LOW ? m_registers.icr : *read;
    return true;
}

// Bits of a 32-bit x2APIC register whose writing is #GP (SDM vol. 3, 11.12.1.2 and 11.12.1.3).
uint32_t LocalApic::reserved_bits(uint16_t offset) noexcept {
    switch (offset) {
    case TPR:
    case SELF_IPI: return ~0xFFU;
    case SVR: return ~k_svr_writable;
    case EOI:
    case ESR: return ~0U;
    case ICR_LOW: return ~k_icr_writable;
    case DIVIDE_CONFIG: return ~k_divide_writable;
    case INITIAL_COUNT: return 0;
    case LVT_TIMER:
    case LVT_THERMAL:
    case LVT_PERFORMANCE:
    case LVT_LINT0:
    case LVT_LINT1:
    case LVT_ERROR: return ~k_lvt_writable[lvt_index(offset)];
    default: return 0; // not writable at all
    }
}

bool LocalApic::write_x2apic(uint32_t msr, uint64_t value) noexcept {
    if (msr < k_msr_first || msr > k_msr_last) return false;
    InterruptGuard guard(m_lock);
    if (!x2apic()) return false;
    auto offset = static_cast<uint16_t>((msr - k_msr_first) << 4);
    if (static_cast<uint32_t>(value) & reserved_bits(offset)) return false;
    if (offset == ICR_LOW) {
        m_registers.icr = value;
        send_ipi(guard, value);
        return true;
    }
    if (value >> 32) return false;
    return write_register(guard, offset, static_cast<uint32_t>(value));
}

} // namespace coffer::devices
