// The fw_cfg files that this folder makes, named as edk2's OvmfPkg looks for them.
#pragma once

#include <string_view>

namespace coffer::firmware {

constexpr std::string_view k_item_e820 = "etc/e820";
constexpr std::string_view k_item_table_loader = "etc/table-loader";
constexpr std::string_view k_item_acpi_tables = "etc/acpi/tables";
constexpr std::string_view k_item_acpi_rsdp = "etc/acpi/rsdp";
constexpr std::string_view k_item_tpm_log = "etc/tpm/log";
constexpr std::string_view k_item_tpm_config = "etc/tpm/config";
constexpr std::string_view k_item_smbios_anchor = "etc/smbios/smbios-anchor";
constexpr std::string_view k_item_smbios_tables = "etc/smbios/smbios-tables";
constexpr std::string_view k_item_system_states = "etc/system-states";
constexpr std::string_view k_item_boot_menu_wait = "etc/boot-menu-wait";
constexpr std::string_view k_item_boot_order = "bootorder";

} // namespace coffer::firmware
