#include "firmware/acpi/tables.hpp"

namespace coffer::firmware::acpi {

namespace {

// Offsets in the power management block: ICH9 datasheet 316972, section 13.8.3.
constexpr uint16_t k_pm1_event = 0x00;
constexpr uint16_t k_pm1_control = 0x04;
constexpr uint16_t k_pm_timer = 0x08;
constexpr uint16_t k_gpe0 = 0x20;
constexpr uint8_t k_pm1_event_size = 4;
constexpr uint8_t k_pm1_control_size = 2;
constexpr uint8_t k_pm_timer_size = 4;
constexpr uint8_t k_gpe0_size = 16;

constexpr uint8_t k_profile_desktop = 1;
constexpr uint8_t k_cmos_century = 0x32;
constexpr uint16_t k_no_c2 = 0xFFF; // above 100: no C2
constexpr uint16_t k_no_c3 = 0xFFF; // above 1000: no C3
// Above eight CPUs logical APIC addressing has to be clustered.
constexpr uint32_t k_flat_apic_cpus = 8;

constexpr GenericAddress port(uint16_t number, uint8_t bytes, AccessSize access) noexcept {
    return {AddressSpace::SystemIo, static_cast<uint8_t>(bytes * 8), 0, access, number};
}

} // namespace

// SMI_CMD is 0: the machine has no SMM and is always in ACPI mode (SCI_EN reads one). FIRMWARE_CTRL, DSDT and X_DSDT
// are filled by the table loader; X_FIRMWARE_CTRL stays 0, as FIRMWARE_CTRL is used.
ByteVector build_fadt(MachineDescription const& machine) {
    auto at = [&](uint16_t offset) { return static_cast<uint16_t>(machine.pm_base + offset); };
    Fadt fadt{};
    fadt.header = table_header({'F', 'A', 'C', 'P'}, 6);
    fadt.minor_version = 4;
    fadt.preferred_pm_profile = k_profile_desktop;
    fadt.sci_int = machine.sci_gsi;
    fadt.pm1a_evt_blk = at(k_pm1_event);
    fadt.pm1a_cnt_blk = at(k_pm1_control);
    fadt.pm_tmr_blk = at(k_pm_timer);
    fadt.gpe0_blk = at(k_gpe0);
    fadt.pm1_evt_len = k_pm1_event_size;
    fadt.pm1_cnt_len = k_pm1_control_size;
    fadt.pm_tmr_len = k_pm_timer_size;
    fadt.gpe0_blk_len = k_gpe0_size;
    fadt.p_lvl2_lat = k_no_c2;
    fadt.p_lvl3_lat = k_no_c3;
    fadt.century = k_cmos_century;
    fadt.iapc_boot_arch = LEGACY_DEVICES | VGA_NOT_PRESENT;
    fadt.flags = WBINVD | PROC_C1 | SLP_BUTTON | RTC_S4 | RESET_REG_SUP | USE_PLATFORM_CLOCK;
    if (machine.cpu_count > k_flat_apic_cpus) fadt.flags |= FORCE_APIC_CLUSTER_MODEL;
    fadt.reset_reg = port(machine.reset_port, 1, AccessSize::Byte);
    fadt.reset_value = machine.reset_value;
    fadt.x_pm1a_evt_blk = port(at(k_pm1_event), k_pm1_event_size, AccessSize::Word);
    fadt.x_pm1a_cnt_blk = port(at(k_pm1_control), k_pm1_control_size, AccessSize::Word);
    fadt.x_pm_tmr_blk = port(at(k_pm_timer), k_pm_timer_size, AccessSize::Dword);
    fadt.x_gpe0_blk = port(at(k_gpe0), k_gpe0_size, AccessSize::Byte);
    fadt.hypervisor_vendor = {'C', 'O', 'F', 'F', 'E', 'R', 0, 0};
    return table_bytes(fadt);
}

} // namespace coffer::firmware::acpi
