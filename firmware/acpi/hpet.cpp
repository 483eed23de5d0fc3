#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

// In periodic mode, in ticks: 100 us at 100 MHz, so that a guest does not ask for more than a host can deliver.
constexpr uint16_t k_minimum_tick = 10'000;

} // namespace

ByteVector build_hpet(MachineDescription const& machine) {
    COFFER_ASSERT(machine.hpet);
    Hpet hpet{};
    hpet.header = table_header({'H', 'P', 'E', 'T'}, 1);
    hpet.event_timer_block_id = machine.hpet_block_id;
    hpet.base = {AddressSpace::SystemMemory, 0, 0, AccessSize::Undefined, *machine.hpet};
    hpet.minimum_tick = k_minimum_tick;
    return table_bytes(hpet);
}

} // namespace coffer::firmware::acpi
