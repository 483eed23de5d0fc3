// The software backend as the machine uses it: create_soft_partition() of vmm/accel/accelerator.hpp.
//
//   auto partition = TRY(create_soft_partition({}));
//   TRY(partition->map({GuestPhysAddr(0), ram_size, ram, false}));          // before or while the vCPU runs
//   auto vcpu = TRY(partition->create_vcpu(0, guest_io, &local_apic));      // local_apic reports to
//   partition->signals(0) for (;;) switch (*TRY(vcpu->run())) ...                                 // on one thread
//
// signals(0) is valid before create_vcpu(), so that the local APIC can be made first.
#pragma once

#include "vmm/accel/soft/translate/soft_vcpu.hpp"

namespace coffer::vmm::soft {

// For debugging a boot: `trace` is called with the CPU before each block; null ends it. `vcpu` is the software
// backend's, stopped (or not yet running).
void set_block_trace(Vcpu& vcpu, BlockTrace trace);

} // namespace coffer::vmm::soft
