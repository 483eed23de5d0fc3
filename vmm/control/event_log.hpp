// Event log: what a running guest's PCRs hold, and what in its memory may be the log of how they came to it.
#pragma once

#include <vector>

#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

struct PcrBankAnswer {
    uint16_t algorithm = 0; // TPM_ALG_ID
    std::vector<ByteVector> values;

    template <class V>
    void fields(V& v) {
        v.required(1, algorithm);
        v.required(2, values);
    }
};

struct EventLogAnswer {
    std::vector<PcrBankAnswer> banks;

    template <class V>
    void fields(V& v) {
        v.required(1, banks);
    }
};

// The guest stands still while its PCRs are read, and runs while its memory is searched. What is found goes to the file
// (vmm/eventlog/memory_log.hpp).
struct EventLogRequest {
    static constexpr RequestType k_type = RequestType::EventLog;
    static constexpr RequestTraits k_traits{.exclusive = true, .descriptor = CarriedDescriptor::File};
    using Answer = EventLogAnswer;

    template <class V>
    void fields(V&) {}
};

} // namespace coffer::vmm::control
