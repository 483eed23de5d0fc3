// 8254 registers and port 0x61. Sources: Intel 8254 data sheet 231164-005, "Programming the 8254"; Intel ICH9 datasheet
// 316972-004, 13.3 (timers) and 13.7.1 (NMI_SC, port 0x61).
#pragma once

#include <cstdint>

namespace coffer::devices::pit {

constexpr uint64_t k_hz = 1'193'182;
constexpr unsigned k_channels = 3;
constexpr unsigned k_speaker_channel = 2;

enum Port : uint16_t {
    COUNTER0 = 0,     // RW 8
    COUNTER1 = 1,     // RW 8
    COUNTER2 = 2,     // RW 8
    CONTROL_WORD = 3, // WO 8
};

// Control word: counter 7:6, access 5:4, mode 3:1, BCD 0.
constexpr unsigned k_control_counter_shift = 6;
constexpr unsigned k_control_access_shift = 4;
constexpr unsigned k_control_mode_shift = 1;
constexpr uint8_t k_control_bcd = 0x01;
constexpr unsigned k_read_back = 3; // in place of a counter: the read-back command, with
constexpr uint8_t k_read_back_no_count = 0x20;
constexpr uint8_t k_read_back_no_status = 0x10;
constexpr unsigned k_read_back_counter_shift = 1;

enum class Access : uint8_t { Latch, Low, High, LowHigh };
enum class Mode : uint8_t { TerminalCount, OneShot, RateGenerator, SquareWave, SoftwareStrobe, HardwareStrobe };

constexpr uint8_t k_status_output = 0x80;
constexpr uint8_t k_status_null_count = 0x40;

// Port 0x61.
constexpr uint8_t k_sc_gate2 = 0x01;          // RW
constexpr uint8_t k_sc_speaker = 0x02;        // RW
constexpr uint8_t k_sc_serr_disable = 0x04;   // RW, kept
constexpr uint8_t k_sc_iochk_disable = 0x08;  // RW, kept
constexpr uint8_t k_sc_refresh_toggle = 0x10; // RO
constexpr uint8_t k_sc_output2 = 0x20;        // RO
constexpr uint8_t k_sc_writable = 0x0F;

} // namespace coffer::devices::pit
