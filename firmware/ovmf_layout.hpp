// Where OVMF (edk2-stable202211, OvmfPkg/Library/PlatformInitLib/{Platform,MemDetect}.c) puts the PCI windows of a Q35.
// The firmware computes them by itself; ACPI has to say the same, so the rules are repeated here. Checked against the
// BARs that Debian 12's OVMF assigned under QEMU with physical address widths of 36, 39, 40 and 46 bits.
#pragma once

#include <cstdint>

#include "firmware/machine_description.hpp"

namespace coffer::firmware {

// PcdPciExpressBaseAddress of OvmfPkgX64; RAM below 4 GiB must end at or under it.
constexpr uint64_t k_ovmf_ecam_base = 0xB000'0000;
constexpr uint64_t k_ecam_size = 0x1000'0000;
// From the ECAM's end to a fixed end.
constexpr AddressRange k_ovmf_pci_window32{k_ovmf_ecam_base + k_ecam_size,
                                           0xFC00'0000 - (k_ovmf_ecam_base + k_ecam_size)};
// I/O ports that OVMF hands out to PCI devices.
constexpr AddressRange k_ovmf_pci_io_window{0x6000, 0xA000};

enum class CpuVendor : uint8_t { Intel, Amd, Other };

// What CPUID tells the firmware: leaf 0 (vendor), leaf 0x80000008 EAX[7:0], leaf 0x80000001 EDX[26].
struct CpuAddressing {
    CpuVendor vendor = CpuVendor::Other;
    uint8_t physical_bits = 36;
    bool has_1g_pages = false;
};

// The 64-bit window, for RAM that ends at `ram_end` (exclusive; below 4 GiB counts as 4 GiB).
AddressRange ovmf_pci_window64(CpuAddressing const& cpu, uint64_t ram_end) noexcept;

} // namespace coffer::firmware
