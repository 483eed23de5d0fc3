// What is saved of a local APIC.
#pragma once

#include <array>
#include <cstdint>

#include "devices/chipset/local_apic_spec.hpp"

namespace coffer::devices {

struct ApicTimerState {
    uint32_t initial_count = 0;
    uint64_t elapsed_ns = 0;   // since the count was loaded
    bool expired = false;      // a one-shot that fired
    uint64_t tsc_deadline = 0; // guest TSC; 0: disarmed

    template <class V>
    void fields(V& v) {
        v.required(1, initial_count);
        v.required(3, elapsed_ns);
        v.required(4, expired);
        v.required(5, tsc_deadline);
    }
};

struct LocalApicState {
    uint64_t base = 0;
    uint8_t tpr = 0;
    uint32_t ldr = 0;
    uint32_t dfr = 0;
    uint32_t svr = 0;
    uint32_t errors = 0;
    uint32_t esr = 0;
    uint64_t icr = 0;
    uint8_t divide = 0;
    std::array<uint32_t, 8> isr{};
    std::array<uint32_t, 8> tmr{};
    std::array<uint32_t, 8> irr{};
    std::array<uint32_t, lapic::k_lvt_count> lvt{};
    bool lint0 = false;
    ApicTimerState timer;

    template <class V>
    void fields(V& v) {
        v.required(1, base);
        v.required(2, tpr);
        v.required(3, ldr);
        v.required(4, dfr);
        v.required(5, svr);
        v.required(6, errors);
        v.required(7, esr);
        v.required(8, icr);
        v.required(9, isr);
        v.required(10, tmr);
        v.required(11, irr);
        v.required(12, lvt);
        v.required(13, lint0);
        v.required(14, timer);
        v.required(15, divide);
    }
};

} // namespace coffer::devices
