// Byte layouts of the ACPI tables (ACPI Specification 6.4 unless a table says otherwise). Little-endian, packed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace coffer::firmware::acpi {

using Signature = std::array<char, 4>;

constexpr std::array<char, 6> k_oem_id{'C', 'O', 'F', 'F', 'E', 'R'};
constexpr std::array<char, 8> k_oem_table_id{'C', 'O', 'F', 'F', 'E', 'R', 'P', 'C'};
constexpr Signature k_creator_id{'C', 'O', 'F', 'R'};

// Section 5.2.6.
struct [[gnu::packed]] TableHeader {
    Signature signature;
    uint32_t length;
    uint8_t revision;
    uint8_t checksum;
    std::array<char, 6> oem_id;
    std::array<char, 8> oem_table_id;
    uint32_t oem_revision;
    Signature creator_id;
    uint32_t creator_revision;
};
static_assert(sizeof(TableHeader) == 36 && offsetof(TableHeader, checksum) == 9);

constexpr TableHeader table_header(Signature signature, uint8_t revision) noexcept {
    return {signature, 0, revision, 0, k_oem_id, k_oem_table_id, 1, k_creator_id, 1};
}

// Section 5.2.5.3.
struct [[gnu::packed]] Rsdp {
    std::array<char, 8> signature;
    uint8_t checksum; // of the first 20 bytes
    std::array<char, 6> oem_id;
    uint8_t revision;
    uint32_t rsdt_address;
    uint32_t length;
    uint64_t xsdt_address;
    uint8_t extended_checksum; // of all
    std::array<uint8_t, 3> reserved;
};
static_assert(sizeof(Rsdp) == 36 && offsetof(Rsdp, xsdt_address) == 24 && offsetof(Rsdp, extended_checksum) == 32);
constexpr uint32_t k_rsdp_first_part = 20;

// Section 5.2.3.2.
enum class AddressSpace : uint8_t { SystemMemory = 0, SystemIo = 1 };
enum class AccessSize : uint8_t { Undefined = 0, Byte = 1, Word = 2, Dword = 3, Qword = 4 };
struct [[gnu::packed]] GenericAddress {
    AddressSpace space;
    uint8_t bit_width;
    uint8_t bit_offset;
    AccessSize access_size;
    uint64_t address;
};
static_assert(sizeof(GenericAddress) == 12);

// Section 5.2.9, revision 6.4.
struct [[gnu::packed]] Fadt {
    TableHeader header;
    uint32_t firmware_ctrl;
    uint32_t dsdt;
    uint8_t reserved0;
    uint8_t preferred_pm_profile;
    uint16_t sci_int;
    uint32_t smi_cmd;
    uint8_t acpi_enable;
    uint8_t acpi_disable;
    uint8_t s4bios_req;
    uint8_t pstate_cnt;
    uint32_t pm1a_evt_blk;
    uint32_t pm1b_evt_blk;
    uint32_t pm1a_cnt_blk;
    uint32_t pm1b_cnt_blk;
    uint32_t pm2_cnt_blk;
    uint32_t pm_tmr_blk;
    uint32_t gpe0_blk;
    uint32_t gpe1_blk;
    uint8_t pm1_evt_len;
    uint8_t pm1_cnt_len;
    uint8_t pm2_cnt_len;
    uint8_t pm_tmr_len;
    uint8_t gpe0_blk_len;
    uint8_t gpe1_blk_len;
    uint8_t gpe1_base;
    uint8_t cst_cnt;
    uint16_t p_lvl2_lat;
    uint16_t p_lvl3_lat;
    uint16_t flush_size;
    uint16_t flush_stride;
    uint8_t duty_offset;
    uint8_t duty_width;
    uint8_t day_alrm;
    uint8_t mon_alrm;
    uint8_t century;
    uint16_t iapc_boot_arch;
    uint8_t reserved1;
    uint32_t flags;
    GenericAddress reset_reg;
    uint8_t reset_value;
    uint16_t arm_boot_arch;
    uint8_t minor_version;
    uint64_t x_firmware_ctrl;
    uint64_t x_dsdt;
    GenericAddress x_pm1a_evt_blk;
    GenericAddress x_pm1b_evt_blk;
    GenericAddress x_pm1a_cnt_blk;
    GenericAddress x_pm1b_cnt_blk;
    GenericAddress x_pm2_cnt_blk;
    GenericAddress x_pm_tmr_blk;
    GenericAddress x_gpe0_blk;
    GenericAddress x_gpe1_blk;
    GenericAddress sleep_control_reg;
    GenericAddress sleep_status_reg;
    std::array<char, 8> hypervisor_vendor;
};
static_assert(sizeof(Fadt) == 276);
static_assert(offsetof(Fadt, dsdt) == 40 && offsetof(Fadt, pm1a_evt_blk) == 56 && offsetof(Fadt, pm1_evt_len) == 88);
static_assert(offsetof(Fadt, flags) == 112 && offsetof(Fadt, reset_reg) == 116 && offsetof(Fadt, x_dsdt) == 140);
static_assert(offsetof(Fadt, x_pm1a_evt_blk) == 148 && offsetof(Fadt, sleep_control_reg) == 244);

// Section 5.2.9, table 5.10: fixed feature flags.
enum FadtFlag : uint32_t {
    WBINVD = 1u << 0,
    PROC_C1 = 1u << 2,
    SLP_BUTTON = 1u << 5, // set: no fixed sleep button
    RTC_S4 = 1u << 7,
    RESET_REG_SUP = 1u << 10,
    USE_PLATFORM_CLOCK = 1u << 15,
    FORCE_APIC_CLUSTER_MODEL = 1u << 18,
};
// Section 5.2.9.3, table 5.11: the PC's boot architecture.
enum BootArchFlag : uint16_t {
    LEGACY_DEVICES = 1u << 0,
    VGA_NOT_PRESENT = 1u << 2,
};

// Section 5.2.10.
struct [[gnu::packed]] Facs {
    Signature signature;
    uint32_t length;
    uint32_t hardware_signature;
    uint32_t firmware_waking_vector;
    uint32_t global_lock;
    uint32_t flags;
    uint64_t x_firmware_waking_vector;
    uint8_t version;
    std::array<uint8_t, 3> reserved0;
    uint32_t ospm_flags;
    std::array<uint8_t, 24> reserved1;
};
static_assert(sizeof(Facs) == 64 && offsetof(Facs, version) == 32);

// Section 5.2.12.
struct [[gnu::packed]] Madt {
    TableHeader header;
    uint32_t local_apic_address;
    uint32_t flags;
};
static_assert(sizeof(Madt) == 44);
constexpr uint32_t k_madt_pcat_compat = 1; // 8259s are there, too
enum class MadtType : uint8_t { LocalApic = 0, IoApic = 1, SourceOverride = 2, LocalApicNmi = 4 };
struct [[gnu::packed]] MadtLocalApic {
    MadtType type = MadtType::LocalApic;
    uint8_t length = 8;
    uint8_t processor_uid;
    uint8_t apic_id;
    uint32_t flags;
};
static_assert(sizeof(MadtLocalApic) == 8);
struct [[gnu::packed]] MadtIoApic {
    MadtType type = MadtType::IoApic;
    uint8_t length = 12;
    uint8_t id;
    uint8_t reserved;
    uint32_t address;
    uint32_t gsi_base;
};
static_assert(sizeof(MadtIoApic) == 12);
struct [[gnu::packed]] MadtSourceOverride {
    MadtType type = MadtType::SourceOverride;
    uint8_t length = 10;
    uint8_t bus; // 0: ISA
    uint8_t source;
    uint32_t gsi;
    uint16_t flags;
};
static_assert(sizeof(MadtSourceOverride) == 10);
struct [[gnu::packed]] MadtLocalApicNmi {
    MadtType type = MadtType::LocalApicNmi;
    uint8_t length = 6;
    uint8_t processor_uid; // 0xFF: all
    uint16_t flags;
    uint8_t lint;
};
static_assert(sizeof(MadtLocalApicNmi) == 6);
// MPS INTI flags, table 5.25.
constexpr uint16_t k_inti_bus_default = 0x0;
constexpr uint16_t k_inti_active_high_level = 0xD;

// PCI Firmware Specification 3.3, section 4.1.2; one segment.
struct [[gnu::packed]] Mcfg {
    TableHeader header;
    uint64_t reserved0;
    uint64_t base;
    uint16_t segment;
    uint8_t first_bus;
    uint8_t last_bus;
    uint32_t reserved1;
};
static_assert(sizeof(Mcfg) == 60);

// IA-PC HPET Specification 1.0a, section 3.2.4.
struct [[gnu::packed]] Hpet {
    TableHeader header;
    uint32_t event_timer_block_id; // the low half of the device's capability register
    GenericAddress base;
    uint8_t number;
    uint16_t minimum_tick;
    uint8_t page_protection;
};
static_assert(sizeof(Hpet) == 56);

// TCG ACPI Specification 1.3, section 8: client platforms, table revision 4 with event log area.
struct [[gnu::packed]] Tpm2 {
    TableHeader header;
    uint16_t platform_class;
    uint16_t reserved;
    uint64_t control_area;
    uint32_t start_method;
    std::array<uint8_t, 12> start_method_parameters;
    uint32_t log_area_minimum_length;
    uint64_t log_area_start_address;
};
static_assert(sizeof(Tpm2) == 76 && offsetof(Tpm2, log_area_start_address) == 68);
constexpr uint16_t k_tpm2_platform_client = 0;
enum class Tpm2StartMethod : uint32_t { Tis = 6, Crb = 7 };
constexpr uint32_t k_crb_control_area_offset = 0x40; // PTP 1.05, table 27: TPM_CRB_CTRL_REQ_0

// Windows ACPI Emulated Devices Table, revision 1 (Microsoft, 2009).
struct [[gnu::packed]] Waet {
    TableHeader header;
    uint32_t flags;
};
static_assert(sizeof(Waet) == 40);
constexpr uint32_t k_waet_pm_timer_good = 1u << 1; // one read of the PM timer is enough

} // namespace coffer::firmware::acpi
