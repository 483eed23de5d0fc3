// Everything the firmware is told through fw_cfg files.
#pragma once

#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "firmware/machine_description.hpp"

namespace coffer::firmware {

struct FirmwareItem {
    std::string name; // see item_names.hpp
    ByteVector bytes;
};
using FirmwareItems = std::vector<FirmwareItem>;

// The items for a machine, each name once; the same description gives the same bytes. InvalidArgument names the part of
// the description that no table can say: RAM that reaches into the ECAM, a window that is empty or overlaps it, a CPU
// count outside 1 to 255, an unaligned or high ECAM, an empty name.
Result<FirmwareItems> build_firmware_items(MachineDescription const& machine);

// OpenFirmware path of the first namespace of the NVMe controller at bus 0, for MachineDescription::boot_order. The
// form is the one that edk2's OvmfPkg/Library/QemuBootOrderLib translates.
std::string nvme_boot_path(uint8_t slot, uint8_t function);

} // namespace coffer::firmware
