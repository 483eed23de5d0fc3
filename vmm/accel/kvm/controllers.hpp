// KVM's interrupt controllers and PIT in the form of our own devices, and back. Sources: linux/kvm.h; Linux
// Documentation/virt/kvm/api.rst 4.26, 4.27, 4.71; 8259A and 8254 data sheets.
//
// What the two do not have in common: our IOAPIC and PIC know the levels of their inputs, KVM's keep them for
// level-triggered ones alone, and an edge-triggered input is taken for low. KVM's PIT counts in binary whatever the
// mode says, and its gates stop nothing.
#pragma once

#include <linux/kvm.h>

#include "vmm/accel/partition_state.hpp"

namespace coffer::vmm::kvm {

devices::PicChipState from_kvm(kvm_pic_state const& chip);
kvm_pic_state to_kvm(devices::PicChipState const& chip, uint8_t elcr_mask);

devices::IoApicState from_kvm(kvm_ioapic_state const& ioapic);
kvm_ioapic_state to_kvm(devices::IoApicState const& state, uint64_t base_address);

// `now`: CLOCK_MONOTONIC in nanoseconds, by which KVM's counters are kept.
devices::PitState from_kvm(kvm_pit_state2 const& pit, int64_t now);
// `step`: nanoseconds that the counters are put forward by.
kvm_pit_state2 to_kvm(devices::PitState const& state, int64_t now, int64_t step);

} // namespace coffer::vmm::kvm
