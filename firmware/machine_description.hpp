// What the firmware tables say about a machine: filled by the machine, read by firmware/ alone. Plain values; no thread
// rules. Addresses are guest-physical, sizes in bytes, ranges half-open.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace coffer::firmware {

struct AddressRange {
    uint64_t base = 0;
    uint64_t size = 0;

    constexpr uint64_t end() const noexcept { return base + size; }
    constexpr bool operator==(AddressRange const&) const = default;
};

enum class TpmKind : uint8_t { None, Crb, Tis };

struct TpmDescription {
    TpmKind kind = TpmKind::None;
    uint64_t base = 0xFED4'0000;
    uint64_t ppi_base = 0xFED4'5000;
    std::optional<uint8_t> gsi; // its interrupt, level, active low; below 16, see layout.hpp

    constexpr uint64_t size() const noexcept { return kind == TpmKind::Tis ? 0x5000 : 0x2000; }
};

struct MachineDescription {
    std::string name;                 // SMBIOS type 1 serial number: the VM's name
    std::array<std::byte, 16> uuid{}; // big-endian, as RFC 4122 prints it

    uint64_t low_ram_size = 0;  // from 0; a multiple of 1 MiB
    uint64_t high_ram_size = 0; // from 4 GiB
    uint32_t cpu_count = 1;     // 1 to 255; local APIC ids 0 to cpu_count - 1

    // Where OVMF puts these on Q35: see ovmf_layout.hpp.
    uint64_t ecam_base = 0xB000'0000; // 256 buses, 1 MiB each
    AddressRange pci_window32;
    AddressRange pci_window64;

    uint64_t local_apic = 0xFEE0'0000;
    uint64_t ioapic = 0xFEC0'0000;
    std::optional<uint64_t> hpet = 0xFED0'0000;
    uint32_t hpet_block_id = 0x8086'A201; // the low half of its capability register
    uint16_t pm_base = 0x600;             // 128 ports, laid out as ICH9's
    uint8_t sci_gsi = 9;
    uint16_t reset_port = 0xCF9;
    uint8_t reset_value = 0x0F;

    TpmDescription tpm;

    // Further ranges below 4 GiB that are neither RAM nor free for devices (KVM's own pages): e820 "reserved".
    std::vector<AddressRange> reserved;
    // OpenFirmware device paths in boot order (nvme_boot_path() and alike); empty leaves the order to the firmware.
    std::vector<std::string> boot_order;
};

} // namespace coffer::firmware
