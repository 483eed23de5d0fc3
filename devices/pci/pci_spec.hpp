// Configuration space of a type 0 function: PCI Local Bus Specification 3.0, 6.1-6.8 and appendix H; PCI Express Base
// Specification 4.0, 7.5; PCI Bus Power Management Interface Specification 1.2, 3.2.
#pragma once

#include <cstdint>

namespace coffer::devices::pci {

constexpr uint16_t k_conventional_config_size = 256;
constexpr uint16_t k_express_config_size = 4096;
constexpr unsigned k_bar_count = 6;

//                                           // access  bytes  since
enum ConfigRegister : uint16_t {
    VENDOR_ID = 0x00,            // RO      2      PCI 2.0
    DEVICE_ID = 0x02,            // RO      2      PCI 2.0
    COMMAND = 0x04,              // RW      2      PCI 2.0
    STATUS = 0x06,               // RW1C    2      PCI 2.0
    REVISION_ID = 0x08,          // RO      1      PCI 2.0
    CLASS_CODE = 0x09,           // RO      3      PCI 2.0
    CACHE_LINE_SIZE = 0x0C,      // RW      1      PCI 2.0
    LATENCY_TIMER = 0x0D,        // RO 0    1      PCI 2.0 (PCIe: hardwired)
    HEADER_TYPE = 0x0E,          // RO      1      PCI 2.0
    BAR0 = 0x10,                 // RW      4 x 6  PCI 2.0
    SUBSYSTEM_VENDOR_ID = 0x2C,  // RO      2      PCI 2.1
    SUBSYSTEM_ID = 0x2E,         // RO      2      PCI 2.1
    EXPANSION_ROM = 0x30,        // RO 0    4      not emulated
    CAPABILITIES_POINTER = 0x34, // RO      1      PCI 2.2
    INTERRUPT_LINE = 0x3C,       // RW      1      PCI 2.0
    INTERRUPT_PIN = 0x3D,        // RO      1      PCI 2.0
    FIRST_CAPABILITY = 0x40,
};

enum CommandBit : uint16_t {
    COMMAND_IO = 1U << 0,
    COMMAND_MEMORY = 1U << 1,
    COMMAND_BUS_MASTER = 1U << 2,
    COMMAND_PARITY = 1U << 6,
    COMMAND_SERR = 1U << 8,
    COMMAND_INTX_DISABLE = 1U << 10, // PCI 2.3
};

enum StatusBit : uint16_t {
    STATUS_INTERRUPT = 1U << 3,    // PCI 2.3
    STATUS_CAPABILITIES = 1U << 4, // PCI 2.2
    STATUS_ERRORS = 0xF900,        // RW1C bits; none is ever set by us
};

enum class CapabilityId : uint8_t {
    PowerManagement = 0x01,
    Msi = 0x05,
    VendorSpecific = 0x09,
    Express = 0x10,
    MsiX = 0x11
};

constexpr uint8_t k_header_multifunction = 0x80;

// BAR low bits (6.2.5.1).
constexpr uint32_t k_bar_io = 0x1;
constexpr uint32_t k_bar_memory_64 = 0x4;

// Offsets within capabilities.
enum MsiRegister : uint16_t { MSI_CONTROL = 2, MSI_ADDRESS = 4, MSI_ADDRESS_HIGH = 8, MSI_DATA = 12, MSI_SIZE = 16 };
enum MsiControl : uint16_t { MSI_ENABLE = 1U << 0, MSI_MULTIPLE_ENABLE = 7U << 4, MSI_64_BIT = 1U << 7 };
enum MsiXRegister : uint16_t { MSIX_CONTROL = 2, MSIX_TABLE = 4, MSIX_PBA = 8, MSIX_SIZE = 12 };
enum MsiXControl : uint16_t { MSIX_FUNCTION_MASK = 1U << 14, MSIX_ENABLE = 1U << 15 };
enum PowerRegister : uint16_t { PM_CAPABILITIES = 2, PM_CONTROL = 4, PM_SIZE = 8 };
enum PowerControl : uint16_t { PM_STATE = 3U, PM_NO_SOFT_RESET = 1U << 3, PM_STATE_D3_HOT = 3U };
enum ExpressRegister : uint16_t {
    EXPRESS_CAPABILITIES = 2,
    EXPRESS_DEVICE_CAPABILITIES = 4,
    EXPRESS_DEVICE_CONTROL = 8,
    EXPRESS_DEVICE_STATUS = 10,
    EXPRESS_SIZE = 0x3C,
};
constexpr uint16_t k_express_version_2 = 2;
constexpr uint16_t k_express_root_complex_integrated = 9U << 4;
constexpr uint32_t k_express_role_based_errors = 1U << 15;

// An MSI-X table entry (6.8.2.6-9).
struct MsiXEntry {
    uint32_t address;
    uint32_t address_high;
    uint32_t data;
    uint32_t vector_control;
};
static_assert(sizeof(MsiXEntry) == 16);
constexpr uint32_t k_msix_vector_masked = 1;
constexpr unsigned k_msix_max_vectors = 2048;

} // namespace coffer::devices::pci
