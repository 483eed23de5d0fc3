// One vCPU's registers between KVM's structures and CpuState.
#pragma once

#include <vector>

#include "vmm/accel/cpu_state.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"

namespace coffer::vmm::kvm {

// The fixed part of a vCPU's state transfer.
struct StateLayout {
    size_t xsave_size = 4096;         // KVM_CAP_XSAVE2's answer, or 4096
    std::vector<uint32_t> saved_msrs; // saved_msrs()
};

// The vCPU is stopped and its I/O finished.
Result<CpuState> read_state(Handle const& vcpu, StateLayout const& layout);
Result<void> write_state(Handle const& vcpu, StateLayout const& layout, CpuState const& state);

// For the completion of single instructions.
Segment from_kvm(kvm_segment const& segment);
kvm_segment to_kvm(Segment const& segment);
std::array<uint64_t, 16> general_registers(kvm_regs const& regs);
void set_general_registers(kvm_regs& regs, std::array<uint64_t, 16> const& values);

} // namespace coffer::vmm::kvm
