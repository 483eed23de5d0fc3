// Stop: power-off, asked for from outside. Answered when it was asked for, not when it is done.
#pragma once

#include "vmm/control/request.hpp"

namespace coffer::vmm::control {

struct StopRequest {
    static constexpr RequestType k_type = RequestType::Stop;
    static constexpr RequestTraits k_traits{};
    using Answer = NoAnswer;

    // False: the guest's ACPI power button is pressed, and the guest may do what it likes. True: the machine is
    // stopped, as if its power were cut; TPM state and UEFI variables are brought home.
    bool force = false;

    template <class V>
    void fields(V& v) {
        v.required(1, force);
    }
};

} // namespace coffer::vmm::control
