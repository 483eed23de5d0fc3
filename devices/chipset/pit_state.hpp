// What is saved of the 8254.
#pragma once

#include <array>
#include <cstdint>

#include "devices/chipset/pit_spec.hpp"

namespace coffer::devices {

struct PitChannelState {
    uint8_t mode = 0;
    uint8_t access = 0;
    bool bcd = false;
    bool gate = false;
    bool loaded = false;
    bool running = false;
    uint32_t count = 0;
    uint64_t elapsed = 0; // ticks since the count started
    bool low_written = false;
    uint8_t low_byte = 0;
    bool high_next = false;
    uint8_t latched_bytes = 0;
    uint16_t latched_count = 0;
    bool status_latched = false;
    uint8_t latched_status = 0;

    template <class V>
    void fields(V& v) {
        v.required(1, mode);
        v.required(2, access);
        v.required(3, bcd);
        v.required(4, gate);
        v.required(5, loaded);
        v.required(6, running);
        v.required(7, count);
        v.required(8, elapsed);
        v.required(9, low_written);
        v.required(10, low_byte);
        v.required(11, high_next);
        v.required(12, latched_bytes);
        v.required(13, latched_count);
        v.required(14, status_latched);
        v.required(15, latched_status);
    }
};

struct PitState {
    std::array<PitChannelState, pit::k_channels> channels{};
    uint8_t system_control = 0;
    bool irq0_connected = true;

    template <class V>
    void fields(V& v) {
        v.required(1, channels);
        v.required(2, system_control);
        v.required(3, irq0_connected);
    }
};

} // namespace coffer::devices
