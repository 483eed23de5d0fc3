// Whether this host's KVM runs ring 0 on the CPU, found by measurement.
#pragma once

#include "base/result.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"

namespace coffer::vmm::kvm {

struct Ring0Measurement {
    double instructions_per_second = 0; // of a 64-bit loop at CPL 0
    bool native = false;
};

// Runs a short guest of its own: under a millisecond where ring 0 is native, some tens where KVM emulates it.
Result<Ring0Measurement> measure_ring0(System const& system);

} // namespace coffer::vmm::kvm
