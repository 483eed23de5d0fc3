// Byte layouts of the SMBIOS structures (DMTF DSP0134 3.6.0). Each is followed by its strings, numbered from 1 and
// NUL-terminated, and by one more NUL (two where there are no strings). Little-endian, packed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace coffer::firmware::smbios {

// Section 5.2.2: 64-bit entry point.
struct [[gnu::packed]] EntryPoint {
    std::array<char, 5> anchor{'_', 'S', 'M', '3', '_'};
    uint8_t checksum;
    uint8_t length = 24;
    uint8_t major = 3;
    uint8_t minor = 0;
    uint8_t docrev = 0;
    uint8_t entry_point_revision = 1;
    uint8_t reserved;
    uint32_t table_maximum_size;
    uint64_t table_address;
};
static_assert(sizeof(EntryPoint) == 24 && offsetof(EntryPoint, table_maximum_size) == 12);

enum class Type : uint8_t {
    Bios = 0,
    System = 1,
    Chassis = 3,
    Processor = 4,
    MemoryArray = 16,
    MemoryDevice = 17,
    MemoryArrayMapping = 19,
    BootInformation = 32,
    EndOfTable = 127,
};

using StringNumber = uint8_t;

// Section 6.1.2.
struct [[gnu::packed]] Header {
    Type type;
    uint8_t length;
    uint16_t handle;
};
static_assert(sizeof(Header) == 4);

// Section 7.1.
struct [[gnu::packed]] Bios {
    Header header;
    StringNumber vendor;
    StringNumber version;
    uint16_t start_segment;
    StringNumber release_date;
    uint8_t rom_size;
    uint64_t characteristics;
    uint8_t extension1;
    uint8_t extension2;
    uint8_t major_release;
    uint8_t minor_release;
    uint8_t ec_major_release;
    uint8_t ec_minor_release;
};
static_assert(sizeof(Bios) == 24);
constexpr uint64_t k_bios_characteristics_unsupported = 1u << 3;
constexpr uint8_t k_bios_extension2 = 1u << 3 | 1u << 4; // UEFI, virtual machine
constexpr uint8_t k_no_release = 0xFF;

// Section 7.2.
struct [[gnu::packed]] System {
    Header header;
    StringNumber manufacturer;
    StringNumber product_name;
    StringNumber version;
    StringNumber serial_number;
    std::array<uint8_t, 16> uuid;
    uint8_t wake_up_type;
    StringNumber sku_number;
    StringNumber family;
};
static_assert(sizeof(System) == 27);
constexpr uint8_t k_wake_up_power_switch = 6;

// Section 7.4.
struct [[gnu::packed]] Chassis {
    Header header;
    StringNumber manufacturer;
    uint8_t type;
    StringNumber version;
    StringNumber serial_number;
    StringNumber asset_tag;
    uint8_t boot_up_state;
    uint8_t power_supply_state;
    uint8_t thermal_state;
    uint8_t security_status;
    uint32_t oem_defined;
    uint8_t height;
    uint8_t power_cords;
    uint8_t contained_elements;
    uint8_t contained_element_length;
    StringNumber sku_number;
};
static_assert(sizeof(Chassis) == 22);
constexpr uint8_t k_chassis_other = 1;
constexpr uint8_t k_state_safe = 3;
constexpr uint8_t k_security_unknown = 2;

// Section 7.5.
struct [[gnu::packed]] Processor {
    Header header;
    StringNumber socket;
    uint8_t type;
    uint8_t family;
    StringNumber manufacturer;
    uint64_t id;
    StringNumber version;
    uint8_t voltage;
    uint16_t external_clock;
    uint16_t max_speed;
    uint16_t current_speed;
    uint8_t status;
    uint8_t upgrade;
    uint16_t l1_handle;
    uint16_t l2_handle;
    uint16_t l3_handle;
    StringNumber serial_number;
    StringNumber asset_tag;
    StringNumber part_number;
    uint8_t core_count;
    uint8_t core_enabled;
    uint8_t thread_count;
    uint16_t characteristics;
    uint16_t family2;
    uint16_t core_count2;
    uint16_t core_enabled2;
    uint16_t thread_count2;
};
static_assert(sizeof(Processor) == 48);
constexpr uint8_t k_processor_central = 3;
constexpr uint8_t k_family_other = 1;
constexpr uint8_t k_status_enabled = 0x41; // socket populated, CPU enabled
constexpr uint8_t k_upgrade_other = 1;
constexpr uint16_t k_no_handle = 0xFFFF;
constexpr uint16_t k_processor_64_bit = 1u << 2;

// Section 7.17.
struct [[gnu::packed]] MemoryArray {
    Header header;
    uint8_t location;
    uint8_t use;
    uint8_t error_correction;
    uint32_t maximum_capacity; // KiB
    uint16_t error_handle;
    uint16_t device_count;
    uint64_t extended_capacity; // bytes, where the other holds k_use_extended_capacity
};
static_assert(sizeof(MemoryArray) == 23);
constexpr uint8_t k_location_other = 1;
constexpr uint8_t k_use_system_memory = 3;
constexpr uint8_t k_correction_none = 3;
constexpr uint32_t k_use_extended_capacity = 0x8000'0000;
constexpr uint16_t k_no_error_information = 0xFFFE;

// Section 7.18, up to version 2.8.
struct [[gnu::packed]] MemoryDevice {
    Header header;
    uint16_t array_handle;
    uint16_t error_handle;
    uint16_t total_width;
    uint16_t data_width;
    uint16_t size; // MiB
    uint8_t form_factor;
    uint8_t device_set;
    StringNumber device_locator;
    StringNumber bank_locator;
    uint8_t memory_type;
    uint16_t type_detail;
    uint16_t speed;
    StringNumber manufacturer;
    StringNumber serial_number;
    StringNumber asset_tag;
    StringNumber part_number;
    uint8_t attributes;
    uint32_t extended_size; // MiB, where size holds k_use_extended_size
    uint16_t configured_speed;
    uint16_t minimum_voltage;
    uint16_t maximum_voltage;
    uint16_t configured_voltage;
};
static_assert(sizeof(MemoryDevice) == 40);
constexpr uint16_t k_use_extended_size = 0x7FFF;
constexpr uint16_t k_width_unknown = 0xFFFF;
constexpr uint8_t k_form_dimm = 9;
constexpr uint8_t k_memory_type_ram = 7;
constexpr uint16_t k_type_detail_other = 1u << 1;

// Section 7.20.
struct [[gnu::packed]] MemoryArrayMapping {
    Header header;
    uint32_t start; // KiB
    uint32_t end;   // KiB, inclusive
    uint16_t array_handle;
    uint8_t partition_width;
    uint64_t extended_start; // bytes, where start holds k_use_extended_address
    uint64_t extended_end;   // bytes, inclusive
};
static_assert(sizeof(MemoryArrayMapping) == 31);
constexpr uint32_t k_use_extended_address = 0xFFFF'FFFF;

// Section 7.33.
struct [[gnu::packed]] BootInformation {
    Header header;
    std::array<uint8_t, 6> reserved;
    uint8_t status; // 0: no error
};
static_assert(sizeof(BootInformation) == 11);

// Section 7.45.
struct [[gnu::packed]] EndOfTable {
    Header header;
};
static_assert(sizeof(EndOfTable) == 4);

} // namespace coffer::firmware::smbios
