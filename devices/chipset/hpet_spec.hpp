// HPET registers. Source: IA-PC HPET Specification 1.0a (October 2004), 2.3.
#pragma once

#include <cstdint>

namespace coffer::devices::hpet {

constexpr uint64_t k_window_size = 0x400;
constexpr unsigned k_timers = 3;
constexpr uint64_t k_period_fs = 10'000'000; // 10 ns a tick
constexpr int64_t k_ns_per_tick = 10;

enum Register : uint16_t {
    GCAP_ID = 0x000,    // RO 64
    GEN_CONF = 0x010,   // RW 64
    GINTR_STA = 0x020,  // RW1C 64
    MAIN_CNT = 0x0F0,   // RW 64
    TIMER_BASE = 0x100, // + 0x20 a timer:
    TIMER_STRIDE = 0x20,
    TIMER_CONF = 0x00, // RW 64
    TIMER_COMP = 0x08, // RW 64
    TIMER_FSB = 0x10,  // not present: reads 0
};

// Revision 1, timers - 1, 64-bit counter, legacy replacement, vendor 0x8086; the low half stands in the ACPI HPET
// table.
constexpr uint64_t k_capabilities =
    0x01 | (k_timers - 1) << 8 | 1 << 13 | 1 << 15 | 0x8086ULL << 16 | k_period_fs << 32;
static_assert((k_capabilities & 0xFFFF'FFFF) == 0x8086'A201);

constexpr uint64_t k_conf_enable = 1 << 0;
constexpr uint64_t k_conf_legacy = 1 << 1;
constexpr uint64_t k_conf_writable = k_conf_enable | k_conf_legacy;

constexpr uint64_t k_timer_level = 1 << 1;
constexpr uint64_t k_timer_enable = 1 << 2;
constexpr uint64_t k_timer_periodic = 1 << 3;
constexpr uint64_t k_timer_periodic_capable = 1 << 4; // RO
constexpr uint64_t k_timer_64bit_capable = 1 << 5;    // RO
constexpr uint64_t k_timer_value_set = 1 << 6;        // WO
constexpr uint64_t k_timer_32bit = 1 << 8;
constexpr unsigned k_timer_route_shift = 9;
constexpr uint64_t k_timer_route = 0x1FULL << k_timer_route_shift;
constexpr uint64_t k_timer_writable =
    k_timer_level | k_timer_enable | k_timer_periodic | k_timer_value_set | k_timer_32bit | k_timer_route;
// Interrupts that a timer can be routed to: those that neither PCI (16-23, 10, 11) nor an ISA device of ours uses.
constexpr uint64_t k_timer_routes = 1 << 5 | 1 << 12;
constexpr uint64_t k_timer_fixed = k_timer_periodic_capable | k_timer_64bit_capable | k_timer_routes << 32;

// Legacy replacement: timer 0 to IRQ 0, timer 1 to IRQ 8 (2.3.5).
constexpr unsigned k_legacy_gsi[2] = {0, 8};

} // namespace coffer::devices::hpet
