// SMBIOS 3.0 anchor and structures (DMTF DSP0134 3.6.0) for the fw_cfg items that OVMF installs
// (OvmfPkg/SmbiosPlatformDxe): types 0, 1, 3, 4, 16, 17, 19, 32 and 127.
#pragma once

#include "base/bytes.hpp"
#include "firmware/machine_description.hpp"

namespace coffer::firmware {

struct SmbiosItems {
    ByteVector anchor; // 24 bytes; the address is the firmware's to fill
    ByteVector tables;
};

SmbiosItems build_smbios(MachineDescription const& machine);

} // namespace coffer::firmware
