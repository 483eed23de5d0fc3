// What is saved of the IOAPIC.
#pragma once

#include <array>
#include <cstdint>

#include "devices/chipset/ioapic_spec.hpp"

namespace coffer::devices {

struct IoApicState {
    uint8_t select = 0;
    uint32_t id = 0;
    uint32_t lines = 0; // a bit a pin
    std::array<uint64_t, ioapic::k_pins> redirection{};

    template <class V>
    void fields(V& v) {
        v.required(1, select);
        v.required(2, id);
        v.required(3, lines);
        v.required(4, redirection);
    }
};

} // namespace coffer::devices
