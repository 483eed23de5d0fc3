// ACPI power management registers of an ICH9. Sources: Intel ICH9 datasheet 316972-004, 13.8.3; ACPI Specification 6.4,
// 4.8.3 (PM1, PM timer) and 4.8.4.1 (GPE).
#pragma once

#include <cstdint>

namespace coffer::devices::pm {

constexpr uint16_t k_ports = 128;
constexpr uint64_t k_timer_hz = 3'579'545;

// Offset from PMBASE         access  width
enum Register : uint16_t {
    PM1_STS = 0x00,  // RW1C    16
    PM1_EN = 0x02,   // RW      16
    PM1_CNT = 0x04,  // RW      32
    PM1_TMR = 0x08,  // RO      32
    GPE0_STS = 0x20, // RW1C    64    no source: reads 0
    GPE0_EN = 0x28,  // RW      64
    SMI_EN = 0x30,   // RW      32    kept; there is no SMM
    SMI_STS = 0x34,  // RW1C    32    reads 0
};

// PM1_STS and PM1_EN.
constexpr uint32_t TMROF = 1 << 0, GBL = 1 << 5, PWRBTN = 1 << 8;
constexpr uint32_t k_pm1_enable_writable = TMROF | GBL | PWRBTN | 1 << 10;
constexpr uint32_t k_pm1_status_all = TMROF | PWRBTN; // those that can be set here

// PM1_CNT.
constexpr uint32_t SCI_EN = 1 << 0, BM_RLD = 1 << 1, SLP_EN = 1 << 13;
constexpr unsigned k_sleep_type_shift = 10;
constexpr uint32_t k_sleep_type = 7U << k_sleep_type_shift;
constexpr uint32_t k_control_writable = BM_RLD | k_sleep_type;
// S5 is 0 in our _S5 package, as OVMF's shutdown writes it; 7 is what an ICH9 itself takes for S5.
constexpr unsigned k_sleep_type_s5 = 0;
constexpr unsigned k_sleep_type_s5_ich9 = 7;

// APM control and status, ports 0xB2 and 0xB3.
constexpr uint16_t k_apm_ports = 2;

} // namespace coffer::devices::pm
