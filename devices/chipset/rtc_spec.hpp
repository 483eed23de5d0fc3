// MC146818A registers and the PC's use of its memory. Sources: Motorola MC146818A data sheet (1984); Intel ICH9
// datasheet 316972-004, 13.6; the memory-size bytes as edk2 OvmfPkg PlatformInitLib and SeaBIOS read them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::rtc {

// Ports, from 0x70.
enum Port : uint16_t { INDEX = 0, DATA = 1, EXTENDED_INDEX = 2, EXTENDED_DATA = 3 };
constexpr size_t k_bank_size = 128;
constexpr uint8_t k_index_mask = 0x7F; // bit 7 of port 0x70 is the NMI mask, which masks nothing here

enum Register : uint8_t {
    SECONDS = 0x00,
    SECONDS_ALARM = 0x01,
    MINUTES = 0x02,
    MINUTES_ALARM = 0x03,
    HOURS = 0x04,
    HOURS_ALARM = 0x05,
    DAY_OF_WEEK = 0x06, // 1 is Sunday
    DAY_OF_MONTH = 0x07,
    MONTH = 0x08,
    YEAR = 0x09,
    REGISTER_A = 0x0A,
    REGISTER_B = 0x0B,
    REGISTER_C = 0x0C, // RO; reading clears
    REGISTER_D = 0x0D, // RO
    SHUTDOWN_STATUS = 0x0F,
    BASE_MEMORY = 0x15,          // u16, KiB
    EXTENDED_MEMORY = 0x17,      // u16, KiB above 1 MiB, at most 65535
    EXTENDED_MEMORY_COPY = 0x30, // u16
    CENTURY = 0x32,
    MEMORY_ABOVE_16M = 0x34, // u16, 64 KiB units, below 4 GiB
    MEMORY_ABOVE_4G = 0x5B,  // u24, 64 KiB units
    CPUS = 0x5F,             // CPUs less one
};

constexpr uint8_t A_UIP = 0x80, A_DIVIDER = 0x70, A_RATE = 0x0F, A_DIVIDER_32K = 0x20;
constexpr uint8_t B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_SQWE = 0x08, B_BINARY = 0x04, B_24H = 0x02;
constexpr uint8_t C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10;
static_assert(C_PF == B_PIE && C_AF == B_AIE && C_UF == B_UIE);
constexpr uint8_t D_VRT = 0x80;
constexpr uint8_t k_a_reset = 0x26; // 32.768 kHz, 1024 Hz
constexpr uint8_t k_hour_pm = 0x80;
constexpr uint8_t k_dont_care = 0xC0; // an alarm byte with both bits set matches anything
constexpr int64_t k_uip_ns = 244'000; // UIP is set this long before an update

} // namespace coffer::devices::rtc
