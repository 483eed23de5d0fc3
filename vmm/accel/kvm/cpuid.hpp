// What CPUID tells a guest under KVM: the host's supported leaves, completed and narrowed.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/accel/kvm/kvm_abi.hpp"

namespace coffer::vmm::kvm {

struct CpuidPolicy {
    unsigned vcpus = 1;
    bool tsc_deadline = false; // KVM_CAP_TSC_DEADLINE_TIMER
    uint32_t tsc_khz = 0;
    // False narrows the features to what KVM's emulator and completion.hpp can execute together: x86-64-v2.
    bool native_ring0 = true;
};

// The leaves of vCPU `index` (its APIC id too), from KVM_GET_SUPPORTED_CPUID's answer.
std::vector<kvm_cpuid_entry2> guest_cpuid(std::vector<kvm_cpuid_entry2> const& supported, CpuidPolicy const& policy,
                                          unsigned index);

// Null where there is no such leaf.
kvm_cpuid_entry2 const* find_leaf(std::vector<kvm_cpuid_entry2> const& leaves, uint32_t function, uint32_t subleaf = 0);
// "AuthenticAMD" or "HygonGenuine" in leaf 0.
bool is_amd(std::vector<kvm_cpuid_entry2> const& leaves);
// CPUID 0x80000008.EAX[7:0], or 36 where the leaf is absent (SDM vol. 2, CPUID). KVM's figure, not the host's raw one:
// memory encryption takes address bits away.
unsigned physical_address_bits(std::vector<kvm_cpuid_entry2> const& leaves);

} // namespace coffer::vmm::kvm
