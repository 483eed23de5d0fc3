// 8259A registers. Sources: Intel 8259A data sheet 231468-003, "Programming the 8259A"; Intel ICH9 datasheet
// 316972-004, 13.4 (both controllers, ELCR).
#pragma once

#include <cstdint>

namespace coffer::devices::pic {

// Port offsets of each controller.
enum Port : uint16_t {
    ICW1_OCW2_OCW3 = 0, // RW: write ICW1, OCW2, OCW3 by bits 4:3; read IRR, ISR or the poll word
    ICW2_ICW3_OCW1 = 1, // RW: write ICW2-4 while initialising, else OCW1 (IMR); read IMR
};

enum Icw1 : uint8_t { ICW1_IC4 = 0x01, ICW1_SNGL = 0x02, ICW1_SELECT = 0x10 };
enum Icw4 : uint8_t { ICW4_AEOI = 0x02, ICW4_SFNM = 0x10 };
enum Ocw3 : uint8_t {
    OCW3_RIS = 0x01,
    OCW3_RR = 0x02,
    OCW3_P = 0x04,
    OCW3_SELECT = 0x08,
    OCW3_SMM = 0x20,
    OCW3_ESMM = 0x40,
};
// OCW2 bits 7:5.
enum Ocw2 : uint8_t {
    OCW2_ROTATE_AEOI_CLEAR = 0,
    OCW2_EOI = 1,
    OCW2_NOP = 2,
    OCW2_SPECIFIC_EOI = 3,
    OCW2_ROTATE_AEOI_SET = 4,
    OCW2_ROTATE_EOI = 5,
    OCW2_SET_PRIORITY = 6,
    OCW2_ROTATE_SPECIFIC_EOI = 7,
};

constexpr uint8_t k_vector_base_mask = 0xF8;
constexpr uint8_t k_poll_interrupt = 0x80;
constexpr unsigned k_cascade_input = 2;
constexpr unsigned k_inputs = 16;

// ELCR bits that can be set: IRQ 0-2, 8 and 13 are always edge-triggered (ICH9, 13.4.10 and 13.4.11).
constexpr uint8_t k_elcr_mask_master = 0xF8;
constexpr uint8_t k_elcr_mask_slave = 0xDE;

} // namespace coffer::devices::pic
