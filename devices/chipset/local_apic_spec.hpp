// Local APIC registers. Source: Intel SDM vol. 3 (order 325384-081), table 11-1 (xAPIC offsets), table 11-6 (x2APIC:
// MSR 0x800 + offset / 16), 11.5 (LVT, timer), 11.8 (priorities, SVR), 2.2.1 and 11.4.4 (IA32_APIC_BASE).
#pragma once

#include <cstdint>

namespace coffer::devices::lapic {

// Offset                        access   width     notes
enum Register : uint16_t {
    ID = 0x020,              // RO       32        xAPIC: bits 31:24
    VERSION = 0x030,         // RO       32
    TPR = 0x080,             // RW       8
    APR = 0x090,             // RO       8         xAPIC only; reads 0
    PPR = 0x0A0,             // RO       8
    EOI = 0x0B0,             // WO       32        x2APIC: 0 only
    RRD = 0x0C0,             // RO       32        xAPIC only; reads 0
    LDR = 0x0D0,             // RW/RO    32        RO in x2APIC mode, derived from the ID
    DFR = 0x0E0,             // RW       32        xAPIC only
    SVR = 0x0F0,             // RW       32
    ISR = 0x100,             // RO       8 x 32
    TMR = 0x180,             // RO       8 x 32
    IRR = 0x200,             // RO       8 x 32
    ESR = 0x280,             // RW       32        a write latches the errors since the last one
    ICR_LOW = 0x300,         // RW       32/64     x2APIC: one 64-bit register
    ICR_HIGH = 0x310,        // RW       32        xAPIC only
    LVT_TIMER = 0x320,       // RW       32
    LVT_THERMAL = 0x330,     // RW       32        kept; has no source here
    LVT_PERFORMANCE = 0x340, // RW       32        kept; has no source here
    LVT_LINT0 = 0x350,       // RW       32        the 8259A's INTR
    LVT_LINT1 = 0x360,       // RW       32        kept; the NMI pin has no source here
    LVT_ERROR = 0x370,       // RW       32
    INITIAL_COUNT = 0x380,   // RW       32
    CURRENT_COUNT = 0x390,   // RO       32
    DIVIDE_CONFIG = 0x3E0,   // RW       32
    SELF_IPI = 0x3F0,        // WO       8         x2APIC only
};

constexpr uint64_t k_window_size = 0x1000;
constexpr uint32_t k_msr_first = 0x800;
constexpr uint32_t k_msr_last = 0x8FF;

constexpr unsigned k_lvt_count = 6;
constexpr uint32_t k_version = 0x14 | (k_lvt_count - 1) << 16;
constexpr uint8_t k_first_legal_vector = 16;

// LVT bits.
constexpr uint32_t k_lvt_vector = 0xFF;
constexpr unsigned k_lvt_mode_shift = 8;
constexpr uint32_t k_lvt_mode = 7U << k_lvt_mode_shift;
constexpr uint32_t k_lvt_polarity = 1U << 13;
constexpr uint32_t k_lvt_level = 1U << 15;
constexpr uint32_t k_lvt_masked = 1U << 16;
constexpr unsigned k_lvt_timer_shift = 17;
constexpr uint32_t k_lvt_timer_mode = 3U << k_lvt_timer_shift;
// Writable bits, in the registers' order. Delivery status (12) and remote IRR (14) read 0.
constexpr uint32_t k_lvt_writable[k_lvt_count] = {
    k_lvt_vector | k_lvt_masked | k_lvt_timer_mode,
    k_lvt_vector | k_lvt_mode | k_lvt_masked,
    k_lvt_vector | k_lvt_mode | k_lvt_masked,
    k_lvt_vector | k_lvt_mode | k_lvt_polarity | k_lvt_level | k_lvt_masked,
    k_lvt_vector | k_lvt_mode | k_lvt_polarity | k_lvt_level | k_lvt_masked,
    k_lvt_vector | k_lvt_masked,
};
constexpr unsigned lvt_index(uint16_t offset) {
    return (offset - unsigned{LVT_TIMER}) / 16;
}
static_assert(lvt_index(LVT_ERROR) == k_lvt_count - 1);

constexpr uint32_t k_svr_enabled = 1U << 8;
constexpr uint32_t k_svr_writable = 0xFF | k_svr_enabled;

constexpr uint32_t k_dfr_flat = 0xFFFF'FFFF;
constexpr uint32_t k_dfr_writable = 0xF000'0000;

// ICR.
constexpr uint32_t k_icr_logical = 1U << 11;
constexpr uint32_t k_icr_assert = 1U << 14;
constexpr uint32_t k_icr_level = 1U << 15;
constexpr unsigned k_icr_shorthand_shift = 18;
constexpr uint32_t k_icr_writable = 0x000C'CFFF;
enum Shorthand : uint8_t { NoShorthand, ToSelf, ToAll, ToOthers };

// ESR.
constexpr uint32_t k_error_send_illegal_vector = 1U << 5;
constexpr uint32_t k_error_receive_illegal_vector = 1U << 6;
constexpr uint32_t k_error_illegal_register = 1U << 7;
constexpr uint32_t k_error_all = 0xE0;

constexpr uint32_t k_divide_writable = 0x0B;
// Bits 3, 1 and 0 of DIVIDE_CONFIG give the divider: 2, 4, 8, ... 128, 1 (figure 11-10), here as a power of two.
constexpr uint8_t divider_shift(uint32_t divide_config) {
    return static_cast<uint8_t>((((divide_config & 3) | (divide_config >> 1 & 4)) + 1) & 7);
}
static_assert(divider_shift(0) == 1 && divider_shift(0xA) == 7 && divider_shift(0xB) == 0);

// IA32_APIC_BASE.
constexpr uint64_t k_base_bsp = 1U << 8;
constexpr uint64_t k_base_x2apic = 1U << 10;
constexpr uint64_t k_base_enabled = 1U << 11;
constexpr uint64_t k_base_address = 0xFEE0'0000; // relocation is not emulated

} // namespace coffer::devices::lapic
