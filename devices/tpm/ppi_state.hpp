// What a snapshot keeps of the physical presence page.
#pragma once

#include "base/bytes.hpp"

namespace coffer::devices {

struct TpmPpiState {
    ByteVector page;

    template <class V>
    void fields(V& v) {
        v.required(1, page);
    }
};

} // namespace coffer::devices
