// Completes, in user space, an instruction that KVM's emulator refuses: with the software CPU's interpreter, hence
// under its allow-list. KVM emulates where it cannot run the guest on the CPU: accesses to MMIO everywhere, and all of
// ring 0 on hosts without hardware virtualization.
#pragma once

#include <memory>

#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"
#include "vmm/accel/kvm/memory_slots.hpp"

namespace coffer::vmm::kvm {

struct CompletionContext {
    size_t xsave_size = 4096;
    unsigned vcpus = 1;
    unsigned physical_address_bits = 36;
    bool native_ring0 = true;
};

// Belongs to one vCPU; used by its thread.
//
// Not completed: what needs state that only KVM holds (MSRs, CPUID, ports and debug registers), locked instructions
// with several vCPUs (the operand goes through a buffer), and 5-level paging. A completed store does not reach KVM's
// tracking of guest page tables: no guest writes those with the instructions that KVM refuses.
class InstructionCompletion {
public:
    // `vcpu`, `memory` and `io` outlive the object.
    static Result<std::unique_ptr<InstructionCompletion>>
    create(Handle const& vcpu, unsigned index, MemorySlots& memory, GuestIo& io, CompletionContext const& context);
    ~InstructionCompletion();
    InstructionCompletion(InstructionCompletion const&) = delete;
    InstructionCompletion& operator=(InstructionCompletion const&) = delete;

    enum class Outcome : uint8_t {
        Completed,
        Faulted,     // the instruction's own exception is with KVM for delivery
        TripleFault, // its exception could not be delivered
    };
    // The instruction at the vCPU's RIP. The error names it, where it is and why not.
    Result<Outcome> complete();

private:
    struct Impl;
    explicit InstructionCompletion(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> m_impl;
};

} // namespace coffer::vmm::kvm
