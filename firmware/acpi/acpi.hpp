// All ACPI tables of a machine as fw_cfg items. They are independent of where the guest places them, so they can be
// built at any time and stay the same across resets.
#pragma once

#include "base/bytes.hpp"
#include "firmware/machine_description.hpp"

namespace coffer::firmware::acpi {

constexpr uint32_t k_tpm_log_size = 0x1'0000; // LAML; TCG PFP 1.05 asks for at least 64 KiB

struct AcpiItems {
    ByteVector table_loader; // etc/table-loader
    ByteVector tables;       // etc/acpi/tables
    ByteVector rsdp;         // etc/acpi/rsdp
    ByteVector tpm_log;      // etc/tpm/log: zeroes; empty without a TPM
};

AcpiItems build_acpi(MachineDescription const& machine);

} // namespace coffer::firmware::acpi
