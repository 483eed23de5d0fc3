// The ACPI tables, one file each, as bytes with their length set and their checksum and pointers still zero: the table
// loader completes those in the guest (table_loader.hpp). Pure functions; the description is validated by
// build_firmware_items().
#pragma once

#include "base/bytes.hpp"
#include "firmware/acpi/table_spec.hpp"
#include "firmware/machine_description.hpp"

namespace coffer::firmware::acpi {

ByteVector build_facs();
ByteVector build_dsdt(MachineDescription const& machine);
ByteVector build_fadt(MachineDescription const& machine);
ByteVector build_madt(MachineDescription const& machine);
ByteVector build_mcfg(MachineDescription const& machine);
ByteVector build_hpet(MachineDescription const& machine); // machine.hpet is there
ByteVector build_waet();
ByteVector build_tpm2(MachineDescription const& machine); // machine.tpm.kind is not None
ByteVector build_ssdt_cpus(MachineDescription const& machine);
ByteVector build_ssdt_hpet(MachineDescription const& machine);
ByteVector build_ssdt_tpm(MachineDescription const& machine);

// The bytes of a table made of one struct; sets header.length.
template <class Table>
ByteVector table_bytes(Table table) {
    table.header.length = sizeof(Table);
    Bytes bytes = object_bytes(table);
    return ByteVector(bytes.begin(), bytes.end());
}

} // namespace coffer::firmware::acpi
