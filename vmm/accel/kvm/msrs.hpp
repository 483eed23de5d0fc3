// Model-specific registers under KVM: what a vCPU starts with, what is saved, and what user space answers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmm/accel/cpu_state.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"

namespace coffer::vmm::kvm {

namespace msr {
constexpr uint32_t IA32_TSC = 0x10;
constexpr uint32_t IA32_APIC_BASE = 0x1B;
constexpr uint32_t IA32_FEATURE_CONTROL = 0x3A;
constexpr uint32_t IA32_BIOS_SIGN_ID = 0x8B;
constexpr uint32_t IA32_MTRRCAP = 0xFE;
constexpr uint32_t IA32_ARCH_CAPABILITIES = 0x10A;
constexpr uint32_t IA32_MISC_ENABLE = 0x1A0;
constexpr uint32_t IA32_MTRR_PHYSBASE0 = 0x200; // and on in pairs of base and mask
constexpr uint32_t IA32_PAT = 0x277;
constexpr uint32_t IA32_MTRR_DEF_TYPE = 0x2FF;
constexpr uint32_t IA32_TSC_DEADLINE = 0x6E0;
constexpr uint32_t IA32_EFER = 0xC0000080;
constexpr uint32_t VM_CR = 0xC0010114;
constexpr uint32_t DE_CFG = 0xC0011029;
} // namespace msr

// Values of `indices` on a vCPU (or of feature MSRs on the system). Those that it does not have are left out.
Result<std::vector<MsrValue>> read_msrs(Handle const& from, std::span<uint32_t const> indices);
// All of `values` in their order; the error names the first that was refused.
Result<void> write_msrs(Handle const& vcpu, std::span<MsrValue const> values);

// After CPUID is set: what firmware expects at power-on, and the host's feature MSRs.
Result<void> write_initial_msrs(System const& system, Handle const& vcpu, std::vector<kvm_cpuid_entry2> const& cpuid);

// What a snapshot holds, in an order that can be written back: KVM's list and the MTRRs, which it leaves out, without
// what belongs to features that are not offered, what is fixed by CPUID, and what CpuState has fields for.
Result<std::vector<uint32_t>> saved_msrs(System const& system, Handle const& vcpu);

// Sends the accesses below, and those to MSRs that KVM does not know, to user space. Nothing where KVM cannot.
Result<void> route_msrs_to_user_space(System const& system, Handle const& vm, bool amd);

// Completes KVM_EXIT_X86_RDMSR or _WRMSR in `run`. The firmware's lock of VMX and SVM is answered as a machine with the
// feature locked off does. An MSR that KVM does not know reads 0 and ignores writes: guests expect model-specific
// registers that the host's model has. A value that KVM refuses is the guest's #GP.
void answer_msr_exit(kvm_run& run) noexcept;

} // namespace coffer::vmm::kvm
