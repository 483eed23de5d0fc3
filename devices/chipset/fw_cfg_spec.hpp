// The firmware configuration interface. Source: QEMU docs/specs/fw_cfg.rst (the interface's only specification).
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::fwcfg {

// Ports, from the selector (0x510): selector 16-bit write, data 8-bit read.
constexpr uint16_t k_selector = 0;
constexpr uint16_t k_data = 1;
constexpr uint16_t k_io_ports = 2;
// From the DMA register (0x514): the address of a DmaAccess, big-endian; the write of its low half starts the transfer.
constexpr uint16_t k_dma_high = 0;
constexpr uint16_t k_dma_low = 4;
constexpr uint16_t k_dma_ports = 8;
constexpr uint64_t k_dma_signature = 0x51454D5520434647; // "QEMU CFG"

// Keys. In the low 14 bits; bit 14 was the write channel of old, bit 15 marks architecture-specific keys.
enum Key : uint16_t {
    SIGNATURE = 0x00,   // "QEMU"
    ID = 0x01,          // u32, see Features
    RAM_SIZE = 0x03,    // u64
    NB_CPUS = 0x05,     // u16: CPUs present at start
    KERNEL_ADDR = 0x07, // u32
    KERNEL_SIZE = 0x08, // u32: the protected-mode part
    INITRD_ADDR = 0x0A, // u32
    INITRD_SIZE = 0x0B, // u32
    BOOT_MENU = 0x0E,   // u16
    MAX_CPUS = 0x0F,    // u16: one more than the highest APIC ID
    KERNEL_DATA = 0x11,
    INITRD_DATA = 0x12,
    CMDLINE_ADDR = 0x13, // u32
    CMDLINE_SIZE = 0x14, // u32, with the terminating zero
    CMDLINE_DATA = 0x15,
    SETUP_ADDR = 0x16, // u32
    SETUP_SIZE = 0x17, // u32: the real-mode part
    SETUP_DATA = 0x18,
    FILE_DIR = 0x19,
    FILE_FIRST = 0x20,
};
constexpr uint16_t k_write_channel = 0x4000;
constexpr uint16_t k_key_end = 0x4000;

enum Features : uint32_t { TRADITIONAL = 1, DMA = 2 };

// Directory: u32 count (big-endian), then entries: u32 size, u16 key, u16 reserved (big-endian), name.
constexpr size_t k_name_field = 56;
constexpr size_t k_max_name = k_name_field - 1;
constexpr size_t k_directory_entry = 8 + k_name_field;
static_assert(k_directory_entry == 64);
constexpr size_t k_max_files = 256;

// DmaAccess in guest memory: u32 control, u32 length, u64 address, all big-endian.
constexpr size_t k_dma_access_size = 16;
constexpr uint32_t k_dma_error = 0x01;
constexpr uint32_t k_dma_read = 0x02;
constexpr uint32_t k_dma_skip = 0x04;
constexpr uint32_t k_dma_select = 0x08;
constexpr uint32_t k_dma_write = 0x10;
constexpr unsigned k_dma_key_shift = 16;

} // namespace coffer::devices::fwcfg
