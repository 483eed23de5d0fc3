// The commands by which OVMF places and links the ACPI tables in guest memory (fw_cfg item etc/table-loader): the
// interface of QEMU's bios-linker-loader, read by edk2 OvmfPkg/AcpiPlatformDxe/QemuFwCfgAcpi.c (layout: QemuLoader.h
// there). Names, offsets and sizes are ours, so a bad one asserts.
#pragma once

#include <string_view>

#include "base/bytes.hpp"

namespace coffer::firmware::acpi {

class TableLoader {
public:
    enum class Zone : uint8_t {
        High = 1,     // anywhere that its pointers can reach
        FSegment = 2, // 0xF0000-0xFFFFF, where the RSDP is looked for
    };

    // Load item `file` into memory aligned to `alignment` (a power of two). Comes before the other two for that file.
    void allocate(std::string_view file, uint32_t alignment, Zone zone);
    // `size` bytes at `offset` of `file` hold an offset in `target`: add the address at which `target` was placed.
    void add_pointer(std::string_view file, uint32_t offset, uint8_t size, std::string_view target);
    // Store at `at` the value that makes the bytes [start, start + length) of `file` add up to 0.
    void add_checksum(std::string_view file, uint32_t at, uint32_t start, uint32_t length);

    ByteVector take() { return std::move(m_commands); }

private:
    ByteVector m_commands;
};

} // namespace coffer::firmware::acpi
