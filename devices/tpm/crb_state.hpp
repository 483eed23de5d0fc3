// What a snapshot keeps of the CRB registers. The TPM behind them is saved apart (TpmBackend).
#pragma once

#include "base/bytes.hpp"
#include "devices/tpm/crb_spec.hpp"

namespace coffer::devices {

struct TpmCrbState {
    bool granted = false;
    crb::Phase phase = crb::Phase::Idle; // never Executing: saving waits for the command
    bool cancel = false;
    ByteVector buffer;

    template <class V>
    void fields(V& v) {
        v.required(1, granted);
        v.required(2, phase);
        v.required(3, cancel);
        v.required(4, buffer);
    }
};

} // namespace coffer::devices
