// What is saved of the two 8259A.
#pragma once

#include <array>
#include <cstdint>

namespace coffer::devices {

struct PicChipState {
    uint8_t irr = 0;
    uint8_t isr = 0;
    uint8_t imr = 0;
    uint8_t lines = 0;
    uint8_t elcr = 0;
    uint8_t vector_base = 0;
    uint8_t top_priority = 0;
    uint8_t init_step = 0;
    bool expect_icw4 = false;
    bool single = false;
    bool read_isr = false;
    bool poll = false;
    bool special_mask = false;
    bool auto_eoi = false;
    bool rotate_on_auto_eoi = false;
    bool special_fully_nested = false;

    template <class V>
    void fields(V& v) {
        v.required(1, irr);
        v.required(2, isr);
        v.required(3, imr);
        v.required(4, lines);
        v.required(5, elcr);
        v.required(6, vector_base);
        v.required(7, top_priority);
        v.required(8, init_step);
        v.required(9, expect_icw4);
        v.required(10, single);
        v.required(11, read_isr);
        v.required(12, poll);
        v.required(13, special_mask);
        v.required(14, auto_eoi);
        v.required(15, rotate_on_auto_eoi);
        v.required(16, special_fully_nested);
    }
};

struct PicState {
    std::array<PicChipState, 2> chips{}; // master, slave

    template <class V>
    void fields(V& v) {
        v.required(1, chips);
    }
};

} // namespace coffer::devices
