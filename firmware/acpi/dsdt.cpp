#include "firmware/acpi/aml_template.hpp"
#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

// The placeholders of asl/dsdt.asl.
constexpr uint32_t k_window32_base = 0x92A4'0000;
constexpr uint32_t k_window32_last = 0x93BE'BFFF;
constexpr uint32_t k_window32_size = 0x011A'C000;
constexpr uint64_t k_window64_base = 0x92A5'0000'0000'0000;
constexpr uint64_t k_window64_last = 0x93BE'D57A'BCDE'FFFF;
constexpr uint64_t k_window64_size = 0x0119'D57A'BCDF'0000;
constexpr uint16_t k_pm_base = 0xC3A0;
constexpr size_t k_pm_base_places = 2; // a fixed port range says its minimum and its maximum
constexpr uint32_t k_ecam_base = 0x95D6'0000;

} // namespace

ByteVector build_dsdt(MachineDescription const& machine) {
    AddressRange const& window32 = machine.pci_window32;
    AddressRange const& window64 = machine.pci_window64;
    return AmlTemplate(compiled_dsdt())
        .replace32(k_window32_base, static_cast<uint32_t>(window32.base))
        .replace32(k_window32_last, static_cast<uint32_t>(window32.end() - 1))
        .replace32(k_window32_size, static_cast<uint32_t>(window32.size))
        .replace64(k_window64_base, window64.base)
        .replace64(k_window64_last, window64.end() - 1)
        .replace64(k_window64_size, window64.size)
        .replace16(k_pm_base, machine.pm_base, k_pm_base_places)
        .replace32(k_ecam_base, static_cast<uint32_t>(machine.ecam_base))
        .take();
}

} // namespace coffer::firmware::acpi
