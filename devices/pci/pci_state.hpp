// What is saved of every PCI function, nested in the device's own state. Tags are never reused.
#pragma once

#include "base/bytes.hpp"

namespace coffer::devices {

struct PciState {
    ByteVector config;       // the whole configuration space; only its writable bits are taken back
    ByteVector msix_table;   // entries of 16 bytes; empty where there is no MSI-X
    ByteVector msix_pending; // one bit a vector, bytes
    bool intx = false;       // what the device drives on its INTx pin

    template <class V>
    void fields(V& v) {
        v.required(1, config);
        v.required(2, msix_table);
        v.required(3, msix_pending);
        v.required(4, intx);
    }
};

} // namespace coffer::devices
