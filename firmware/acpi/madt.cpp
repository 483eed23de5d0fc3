#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

constexpr uint32_t k_cpu_enabled = 1;
constexpr uint8_t k_all_processors = 0xFF;
constexpr uint8_t k_nmi_lint = 1;
constexpr uint8_t k_isa_timer = 0;
constexpr uint32_t k_timer_gsi = 2;

template <class Entry>
void append_entry(ByteVector& table, Entry const& entry) {
    append(table, object_bytes(entry));
}

} // namespace

// The PIT's ISA interrupt 0 arrives at I/O APIC input 2, and the SCI is level-triggered. PCI interrupts are 16 and up,
// described by _PRT.
ByteVector build_madt(MachineDescription const& machine) {
    Madt madt{};
    madt.header = table_header({'A', 'P', 'I', 'C'}, 5);
    madt.local_apic_address = static_cast<uint32_t>(machine.local_apic);
    madt.flags = k_madt_pcat_compat;
    ByteVector table = table_bytes(madt);
    for (uint32_t cpu = 0; cpu < machine.cpu_count; ++cpu) {
        auto id = static_cast<uint8_t>(cpu);
        append_entry(table, MadtLocalApic{.processor_uid = id, .apic_id = id, .flags = k_cpu_enabled});
    }
    append_entry(table,
                 MadtIoApic{.id = 0, .reserved = 0, .address = static_cast<uint32_t>(machine.ioapic), .gsi_base = 0});
    append_entry(table,
                 MadtSourceOverride{.bus = 0, .source = k_isa_timer, .gsi = k_timer_gsi, .flags = k_inti_bus_default});
    append_entry(table,
                 MadtSourceOverride{
                     .bus = 0, .source = machine.sci_gsi, .gsi = machine.sci_gsi, .flags = k_inti_active_high_level});
    append_entry(table,
                 MadtLocalApicNmi{.processor_uid = k_all_processors, .flags = k_inti_bus_default, .lint = k_nmi_lint});
    store_le<uint32_t>(table, offsetof(TableHeader, length), static_cast<uint32_t>(table.size()));
    return table;
}

} // namespace coffer::firmware::acpi
