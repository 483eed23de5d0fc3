#pragma once

#include <cstdint>

namespace coffer::devices {

struct PciHostState {
    uint32_t config_address = 0;
    template <class V>
    void fields(V& v) {
        v.required(1, config_address);
    }
};

} // namespace coffer::devices
