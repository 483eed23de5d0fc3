// Interrupt controllers and PIT in a saved machine: units of our own devices, whichever backend held them.
#pragma once

#include "vmm/snapshot/machine_state.hpp"

namespace coffer::vmm {

// Units that only a platform without the backend's own controllers has as devices.
bool is_controller_unit(std::string_view name) noexcept;

// Of a machine on a backend with controllers of its own, whose vCPUs and partition are saved: puts their state into
// units. An interrupt that a vCPU had begun to take, and that its local APIC gave it, goes back to where it was.
Result<void> controllers_to_units(MachineState& state);
// The reverse, for a backend with controllers of its own: fills in what its restore() and its vCPUs' set_state() take.
// Local APIC timers go forward by `step` nanoseconds. Corrupt, Unsupported where a unit is missing.
Result<void> controllers_from_units(std::vector<SavedUnit> const& units, std::vector<CpuState>& vcpus,
                                    ByteVector& partition, int64_t step);

} // namespace coffer::vmm
