// What Partition::save() gives of a backend that has interrupt controllers and a PIT of its own: in the form in which
// our own devices are saved, whatever the backend keeps them in. So a machine's saved state is the same with either
// backend, and goes on with the other (docs/formats/snapshot.md, "Machine state").
#pragma once

#include "devices/chipset/ioapic_state.hpp"
#include "devices/chipset/pic_state.hpp"
#include "devices/chipset/pit_state.hpp"

namespace coffer::vmm {

struct PartitionState {
    uint64_t clock_ns = 0; // the backend's clock for the guest; 0: it has none
    devices::PicState pic;
    devices::IoApicState ioapic;
    devices::PitState pit;

    template <class V>
    void fields(V& v) {
        v.required(1, clock_ns);
        v.required(2, pic);
        v.required(3, ioapic);
        v.required(4, pit);
    }
};

} // namespace coffer::vmm
