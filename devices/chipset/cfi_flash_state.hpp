// What is saved of a flash bank. The content is the machine's (it is backed by the home), not part of this.
#pragma once

#include <cstdint>

namespace coffer::devices {

struct CfiFlashState {
    uint8_t mode = 0;
    uint8_t pending = 0;
    uint8_t status = 0;

    template <class V>
    void fields(V& v) {
        v.required(1, mode);
        v.required(2, pending);
        v.required(3, status);
    }
};

} // namespace coffer::devices
