#include "firmware/items.hpp"

#include <array>
#include <string_view>
#include <utility>

#include "firmware/acpi/acpi.hpp"
#include "firmware/e820.hpp"
#include "firmware/item_names.hpp"
#include "firmware/ovmf_layout.hpp"
#include "firmware/smbios.hpp"

namespace coffer::firmware {

namespace {

constexpr uint64_t k_four_gib = 0x1'0000'0000;
constexpr uint64_t k_mib = 0x10'0000;
constexpr uint64_t k_max_ram = uint64_t{1} << 46;
constexpr size_t k_max_name = 64;

// Six bytes: S0, S1, S2, S3, S4, S5; bit 7 set where the machine has the state, the rest its SLP_TYP. QEMU's hw/acpi.
constexpr std::array<uint8_t, 6> k_system_states{0x80, 0x00, 0x00, 0x01, 0x02, 0x80};

// edk2 OvmfPkg/Include/IndustryStandard/QemuTpm.h.
struct [[gnu::packed]] TpmConfig {
    uint32_t ppi_address;
    uint8_t tpm_version; // 2: TPM 2.0
    uint8_t ppi_version; // 1: PPI 1.30
};
static_assert(sizeof(TpmConfig) == 6);

Error invalid(std::string_view what) {
    return make_error(ErrorCode::InvalidArgument, "machine description: {}", what);
}

bool in_low_4g(AddressRange const& range) {
    return range.base < k_four_gib && range.size <= k_four_gib - range.base;
}

Result<void> validate(MachineDescription const& machine) {
    AddressRange ecam{machine.ecam_base, k_ecam_size};
    AddressRange const& low = machine.pci_window32;
    AddressRange const& high = machine.pci_window64;
    if (machine.name.empty() || machine.name.size() > k_max_name || machine.name.find('\0') != std::string::npos)
        return invalid("a name has 1 to 64 bytes, none of them NUL");
    if (machine.cpu_count < 1 || machine.cpu_count > 255) return invalid("CPU count is not 1 to 255");
    if (machine.low_ram_size == 0 || machine.low_ram_size % k_mib != 0 || machine.high_ram_size % k_mib != 0)
        return invalid("RAM sizes are not multiples of 1 MiB");
    if (machine.high_ram_size > k_max_ram) return invalid("RAM above 4 GiB is more than 64 TiB");
    if (ecam.base % k_ecam_size != 0 || !in_low_4g(ecam))
        return invalid("the ECAM is not aligned to 256 MiB below 4 GiB");
    if (machine.low_ram_size > ecam.base) return invalid("RAM below 4 GiB reaches into the ECAM");
    if (low.size == 0 || !in_low_4g(low) || low.base < ecam.end())
        return invalid("the 32-bit PCI window is empty or not between the ECAM and 4 GiB");
    if (high.size == 0 || high.base < k_four_gib + machine.high_ram_size || high.size > UINT64_MAX - high.base)
        return invalid("the 64-bit PCI window is empty or overlaps RAM");
    for (uint64_t base : {machine.local_apic, machine.ioapic, machine.hpet.value_or(0)})
        if (base >= k_four_gib) return invalid("an interrupt controller or the HPET is above 4 GiB");
    for (uint64_t base : {machine.tpm.base, machine.tpm.ppi_base})
        if (machine.tpm.kind != TpmKind::None && (base >= k_four_gib || base % 0x1000 != 0))
            return invalid("the TPM's registers or its PPI page are above 4 GiB or not at a page");
    return {};
}

ByteVector to_vector(Bytes bytes) {
    return ByteVector(bytes.begin(), bytes.end());
}

// Lines end in a newline, the whole in NUL.
ByteVector boot_order_bytes(std::vector<std::string> const& paths) {
    ByteVector bytes;
    for (std::string const& path : paths) {
        append(bytes, as_bytes(path));
        bytes.push_back(static_cast<std::byte>('\n'));
    }
    bytes.push_back(std::byte{0});
    return bytes;
}

} // namespace

Result<FirmwareItems> build_firmware_items(MachineDescription const& machine) {
    TRY(validate(machine));
    FirmwareItems items;
    auto add = [&](std::string_view name, ByteVector bytes) { items.push_back({std::string(name), std::move(bytes)}); };

    add(k_item_e820, build_e820(machine));
    acpi::AcpiItems acpi = acpi::build_acpi(machine);
    add(k_item_table_loader, std::move(acpi.table_loader));
    add(k_item_acpi_tables, std::move(acpi.tables));
    add(k_item_acpi_rsdp, std::move(acpi.rsdp));
    if (machine.tpm.kind != TpmKind::None) {
        add(k_item_tpm_log, std::move(acpi.tpm_log));
        TpmConfig config{static_cast<uint32_t>(machine.tpm.ppi_base), 2, 1};
        add(k_item_tpm_config, to_vector(object_bytes(config)));
    }
    SmbiosItems smbios = build_smbios(machine);
    add(k_item_smbios_anchor, std::move(smbios.anchor));
    add(k_item_smbios_tables, std::move(smbios.tables));
    add(k_item_system_states, to_vector(object_bytes(k_system_states)));
    add(k_item_boot_menu_wait, to_vector(object_bytes(uint16_t{0})));
    if (!machine.boot_order.empty()) add(k_item_boot_order, boot_order_bytes(machine.boot_order));
    return items;
}

// QemuBootOrderLib knows an NVMe controller by the node name "pci8086,5845" whatever the device's own ids are.
std::string nvme_boot_path(uint8_t slot, uint8_t function) {
    return function == 0 ? fmt::format("/pci@i0cf8/pci8086,5845@{:x}/namespace@1,0", slot)
                         : fmt::format("/pci@i0cf8/pci8086,5845@{:x},{:x}/namespace@1,0", slot, function);
}

} // namespace coffer::firmware
