// What is saved of a 16550A.
#pragma once

#include <cstdint>

#include "base/bytes.hpp"

namespace coffer::devices {

struct UartState {
    uint16_t divisor = 0;
    uint8_t ier = 0;
    uint8_t fcr = 0;
    uint8_t lcr = 0;
    uint8_t mcr = 0;
    uint8_t msr = 0;
    uint8_t scratch = 0;
    bool overrun = false;
    bool thre_pending = false;
    ByteVector received;

    template <class V>
    void fields(V& v) {
        v.required(1, divisor);
        v.required(2, ier);
        v.required(3, fcr);
        v.required(4, lcr);
        v.required(5, mcr);
        v.required(6, msr);
        v.required(7, scratch);
        v.required(8, overrun);
        v.required(9, thre_pending);
        v.required(10, received);
    }
};

} // namespace coffer::devices
