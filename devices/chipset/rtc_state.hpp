// What is saved of the real-time clock. Time is an offset from the host's UTC, so that a restored clock is right.
#pragma once

#include <array>
#include <cstdint>

#include "devices/chipset/rtc_spec.hpp"

namespace coffer::devices {

struct RtcState {
    uint8_t index = 0;
    uint8_t extended_index = 0;
    std::array<uint8_t, rtc::k_bank_size> memory{};
    std::array<uint8_t, rtc::k_bank_size> extended{};
    int64_t offset_seconds = 0; // guest's time less the host's, as last set
    uint64_t phase_ns = 0;      // since the last update, while the clock runs
    uint8_t flags = 0;          // PF, AF, UF
    bool irq_connected = true;

    template <class V>
    void fields(V& v) {
        v.required(1, index);
        v.required(2, extended_index);
        v.required(3, memory);
        v.required(4, extended);
        v.required(5, offset_seconds);
        v.required(6, phase_ns);
        v.required(7, flags);
        v.required(8, irq_connected);
    }
};

} // namespace coffer::devices
