// What a snapshot keeps of the FIFO registers. The TPM behind them is saved apart (TpmBackend).
#pragma once

#include <array>

#include "base/bytes.hpp"
#include "devices/tpm/tis_spec.hpp"
#include "devices/tpm/tpm_backend.hpp"

namespace coffer::devices {

struct TpmTisLocalityState {
    bool requested = false;
    bool seized = false;
    uint32_t int_enable = tis::k_int_low_level;
    uint32_t int_status = 0;
    uint8_t int_vector = 0;

    bool operator==(TpmTisLocalityState const&) const = default;
    template <class V>
    void fields(V& v) {
        v.required(1, requested);
        v.required(2, seized);
        v.required(3, int_enable);
        v.required(4, int_status);
        v.required(5, int_vector);
    }
};

struct TpmTisState {
    static constexpr uint8_t k_no_locality = 0xFF;

    uint8_t active = k_no_locality;
    std::array<TpmTisLocalityState, k_locality_count> localities{};
    tis::Phase phase = tis::Phase::Idle; // never Executing: saving waits for the command
    ByteVector fifo;                     // the command as far as it came (Reception), or the response (Completed)
    uint32_t read_offset = 0;            // into the response

    template <class V>
    void fields(V& v) {
        v.required(1, active);
        v.required(2, localities);
        v.required(3, phase);
        v.required(4, fifo);
        v.required(5, read_offset);
    }
};

} // namespace coffer::devices
