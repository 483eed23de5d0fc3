// The page through which the operating system (by the _DSM of TCG Physical Presence Interface Specification 1.30, with
// the memory clear interface of TCG PC Client Platform Reset Attack Mitigation Specification 1.10) leaves requests for
// the firmware. Its layout is an agreement between virtual machines and OVMF (QEMU docs/specs/tpm.rst, "ACPI PPI
// Interface"; edk2 OvmfPkg/Include/IndustryStandard/QemuTpm.h); etc/tpm/config in fw_cfg tells OVMF where it is.
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::ppi {

constexpr size_t k_page_size = 0x400;

// clang-format off
enum class Field : uint16_t {
    //                          offset    bytes  written by  what
    FUNCTIONS                = 0x000,  // 256    firmware    what is done about each operation: bits 2:0, see TCG PPI 1.30, 7
    INTERRUPT                = 0x100,  // 1      firmware    not used by OVMF
    FUNCTION_INDEX           = 0x101,  // 4      AML         not used by OVMF
    LAST_RESULT              = 0x105,  // 4      firmware    response to the last operation
    REQUEST                  = 0x109,  // 4      AML         the operation to carry out at the next boot
    REQUEST_PARAMETER        = 0x10D,  // 4      AML
    LAST_REQUEST             = 0x111,  // 4      firmware    the last operation carried out
    RETURN_CODE              = 0x115,  // 4      firmware    not used by OVMF
    RESERVED                 = 0x119,  // 64
    NEXT_STEP                = 0x159,  // 1      firmware    what it goes on with after a reset of its own
    MEMORY_OVERWRITE         = 0x15A,  // 1      AML         bit 0: RAM is to be wiped at the next reset
};
// clang-format on
static_assert(static_cast<size_t>(Field::RESERVED) + 64 == static_cast<size_t>(Field::NEXT_STEP));
static_assert(static_cast<size_t>(Field::MEMORY_OVERWRITE) < k_page_size);

constexpr uint8_t k_overwrite_memory = 1U << 0;

} // namespace coffer::devices::ppi
