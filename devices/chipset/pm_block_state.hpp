// What is saved of the power management block.
#pragma once

#include <array>
#include <cstdint>

namespace coffer::devices {

struct PmBlockState {
    uint32_t status = 0;
    uint32_t enable = 0;
    uint32_t control = 0;
    uint64_t gpe0_enable = 0;
    uint32_t smi_enable = 0;
    std::array<uint8_t, 2> apm{};
    uint64_t timer_ns = 0; // since the timer was 0

    template <class V>
    void fields(V& v) {
        v.required(1, status);
        v.required(2, enable);
        v.required(3, control);
        v.required(4, gpe0_enable);
        v.required(5, smi_enable);
        v.required(6, apm);
        v.required(7, timer_ns);
    }
};

} // namespace coffer::devices
