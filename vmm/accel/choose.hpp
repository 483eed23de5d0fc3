// Which CPU backend runs a VM, and why.
#pragma once

#include <cstdint>
#include <string>

namespace coffer::vmm {

enum class AcceleratorPreference : uint8_t { Auto, Kvm, Soft };
enum class AcceleratorKind : uint8_t { Kvm, Soft };

struct AcceleratorChoice {
    AcceleratorKind kind = AcceleratorKind::Soft;
    std::string reason; // one line for the user, without a full stop
};

// Auto takes KVM where a measurement shows ring 0 to run natively, else the software CPU. Kvm and Soft are taken at
// their word; whether they work shows when the partition is made.
AcceleratorChoice choose_accelerator(AcceleratorPreference preference);

} // namespace coffer::vmm
