// The memory map for OVMF (fw_cfg item etc/e820): RAM, and ranges that are reserved.
#pragma once

#include "base/bytes.hpp"
#include "firmware/machine_description.hpp"

namespace coffer::firmware {

// 20-byte entries: base, length, type (1 RAM, 2 reserved); ACPI Specification 6.4, table 15.4.
ByteVector build_e820(MachineDescription const& machine);

} // namespace coffer::firmware
