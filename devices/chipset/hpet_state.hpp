// What is saved of the HPET.
#pragma once

#include <array>
#include <cstdint>

#include "devices/chipset/hpet_spec.hpp"

namespace coffer::devices {

struct HpetTimerState {
    uint64_t config = 0; // writable bits
    uint64_t comparator = 0;
    uint64_t period = 0;
    bool armed = false;
    uint64_t due = 0; // main counter value of the next match

    template <class V>
    void fields(V& v) {
        v.required(1, config);
        v.required(2, comparator);
        v.required(3, period);
        v.required(4, armed);
        v.required(5, due);
    }
};

struct HpetState {
    uint64_t config = 0;
    uint64_t status = 0;
    uint64_t counter = 0;
    std::array<HpetTimerState, hpet::k_timers> timers{};

    template <class V>
    void fields(V& v) {
        v.required(1, config);
        v.required(2, status);
        v.required(3, counter);
        v.required(4, timers);
    }
};

} // namespace coffer::devices
