// What is saved of fw_cfg. The items themselves come from the machine's configuration again, but for what a guest
// wrote.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.hpp"

namespace coffer::devices {

struct FwCfgItemState {
    std::string name;
    ByteVector content;

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, content);
    }
};

struct FwCfgState {
    uint16_t key = 0;
    uint32_t offset = 0;
    uint32_t dma_high = 0;
    std::vector<FwCfgItemState> written;

    template <class V>
    void fields(V& v) {
        v.required(1, key);
        v.required(2, offset);
        v.required(3, dma_high);
        v.required(4, written);
    }
};

} // namespace coffer::devices
