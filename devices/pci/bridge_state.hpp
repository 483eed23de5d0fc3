#pragma once

#include "devices/pci/pci_state.hpp"

namespace coffer::devices {

// Of the host bridge and of the LPC bridge: their registers all live in configuration space.
struct BridgeState {
    PciState pci;
    template <class V>
    void fields(V& v) {
        v.required(1, pci);
    }
};

} // namespace coffer::devices
