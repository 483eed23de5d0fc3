// Parallel NOR flash, Intel command set. Sources: JEDEC JESD68.01 (CFI); Intel StrataFlash J3 datasheet 290667, 4.0
// "Command set"; the subset and its details that OVMF's flash driver uses (edk2
// OvmfPkg/QemuFlashFvbServicesRuntimeDxe).
#pragma once

#include <cstdint>

namespace coffer::devices::cfi {

// Commands: the low byte of a write.
enum Command : uint8_t {
    PROGRAM_ALT = 0x10, // then the data
    ERASE = 0x20,       // then CONFIRM at an address in the block
    PROGRAM = 0x40,     // as PROGRAM_ALT
    CLEAR_STATUS = 0x50,
    READ_STATUS = 0x70,
    READ_ID = 0x90,
    CONFIRM = 0xD0,
    READ_ARRAY = 0xFF,
};

// Status register.
constexpr uint8_t k_status_ready = 0x80;
constexpr uint8_t k_status_erase_error = 0x20;
constexpr uint8_t k_status_program_error = 0x10;
constexpr uint8_t k_status_locked = 0x02;

// Identifier codes, by offset in the device.
constexpr uint8_t k_manufacturer = 0x89; // Intel
constexpr uint8_t k_device = 0x18;
constexpr uint8_t k_erased = 0xFF;

} // namespace coffer::devices::cfi
