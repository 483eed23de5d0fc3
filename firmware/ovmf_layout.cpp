#include "firmware/ovmf_layout.hpp"

#include <algorithm>

#include "base/bytes.hpp"

namespace coffer::firmware {

namespace {

constexpr uint64_t k_gib = 0x4000'0000;
// PcdPciMmio64Size: what OVMF takes where it does not trust the CPU's address width, or the width is small.
constexpr uint64_t k_classic_window = 32 * k_gib;

bool width_is_trusted(CpuAddressing const& cpu) noexcept {
    if (cpu.physical_bits >= 41) return true;
    if (cpu.vendor == CpuVendor::Intel) return cpu.physical_bits == 36 || cpu.physical_bits == 39;
    return cpu.vendor == CpuVendor::Amd && cpu.physical_bits == 40;
}

} // namespace

AddressRange ovmf_pci_window64(CpuAddressing const& cpu, uint64_t ram_end) noexcept {
    uint64_t first_free = std::max<uint64_t>(ram_end, 4 * k_gib);
    AddressRange classic{align_up(align_up(first_free, k_gib), k_classic_window), k_classic_window};
    if (!width_is_trusted(cpu)) return classic;
    unsigned bits = std::min<unsigned>(cpu.physical_bits, cpu.has_1g_pages ? 46 : 40);
    uint64_t space = uint64_t{1} << bits;
    uint64_t eighth = space >> 3;
    if (classic.size < eighth && classic.base + eighth < space) return {space - eighth, eighth};
    return classic;
}

} // namespace coffer::firmware
