#include "firmware/smbios.hpp"

#include <initializer_list>
#include <string_view>

#include "firmware/smbios_spec.hpp"

namespace coffer::firmware {

namespace {

using namespace smbios;

constexpr std::string_view k_vendor = "Coffer";
constexpr std::string_view k_product = "Coffer Virtual Machine";
constexpr std::string_view k_version = "1";
constexpr std::string_view k_release_date = "01/01/2026";
constexpr uint64_t k_mib = 0x10'0000;

// Handles are the type number in the high byte and an index in the low one.
constexpr uint16_t handle(Type type, uint8_t index = 0) noexcept {
    return static_cast<uint16_t>(static_cast<uint16_t>(type) << 8 | index);
}
constexpr uint16_t k_memory_array = handle(Type::MemoryArray);

// Sets the header, and appends structure and strings. No string is empty (section 6.1.3).
template <class Structure>
void append_structure(ByteVector& to, Structure structure, Type type, std::initializer_list<std::string_view> strings,
                      uint8_t index = 0) {
    structure.header = {type, sizeof(Structure), handle(type, index)};
    append(to, object_bytes(structure));
    for (std::string_view text : strings) {
        COFFER_ASSERT(!text.empty());
        append(to, as_bytes(text));
        to.push_back(std::byte{0});
    }
    if (strings.size() == 0) to.push_back(std::byte{0});
    to.push_back(std::byte{0});
}

void append_bios(ByteVector& to) {
    Bios bios{};
    bios.vendor = 1;
    bios.version = 2;
    bios.release_date = 3;
    bios.characteristics = k_bios_characteristics_unsupported;
    bios.extension2 = k_bios_extension2;
    bios.ec_major_release = bios.ec_minor_release = k_no_release;
    append_structure(to, bios, Type::Bios, {k_vendor, k_version, k_release_date});
}

// The first three fields of a UUID are little-endian here, section 7.2.1.
std::array<uint8_t, 16> mixed_endian(std::array<std::byte, 16> const& uuid) {
    constexpr std::array<uint8_t, 16> k_order{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    std::array<uint8_t, 16> result{};
    for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<uint8_t>(uuid[k_order[i]]);
    return result;
}

void append_system(ByteVector& to, MachineDescription const& machine) {
    System system{};
    system.manufacturer = 1;
    system.product_name = 2;
    system.version = 3;
    system.serial_number = 4;
    system.uuid = mixed_endian(machine.uuid);
    system.wake_up_type = k_wake_up_power_switch;
    append_structure(to, system, Type::System, {k_vendor, k_product, k_version, machine.name});
}

void append_chassis(ByteVector& to) {
    Chassis chassis{};
    chassis.manufacturer = 1;
    chassis.type = k_chassis_other;
    chassis.version = 2;
    chassis.boot_up_state = chassis.power_supply_state = chassis.thermal_state = k_state_safe;
    chassis.security_status = k_security_unknown;
    append_structure(to, chassis, Type::Chassis, {k_vendor, k_version});
}

// One socket with all CPUs as its cores.
void append_processor(ByteVector& to, MachineDescription const& machine) {
    Processor processor{};
    processor.socket = 1;
    processor.type = k_processor_central;
    processor.family = k_family_other;
    processor.manufacturer = 2;
    processor.version = 3;
    processor.status = k_status_enabled;
    processor.upgrade = k_upgrade_other;
    processor.l1_handle = processor.l2_handle = processor.l3_handle = k_no_handle;
    processor.core_count = processor.core_enabled = processor.thread_count = static_cast<uint8_t>(machine.cpu_count);
    processor.core_count2 = processor.core_enabled2 = processor.thread_count2 =
        static_cast<uint16_t>(machine.cpu_count);
    processor.characteristics = k_processor_64_bit;
    processor.family2 = k_family_other;
    append_structure(to, processor, Type::Processor, {"CPU 0", k_vendor, k_version});
}

void append_memory(ByteVector& to, MachineDescription const& machine) {
    uint64_t size = machine.low_ram_size + machine.high_ram_size;

    MemoryArray array{};
    array.location = k_location_other;
    array.use = k_use_system_memory;
    array.error_correction = k_correction_none;
    if (size / 1024 < k_use_extended_capacity) {
        array.maximum_capacity = static_cast<uint32_t>(size / 1024);
    } else {
        array.maximum_capacity = k_use_extended_capacity;
        array.extended_capacity = size;
    }
    array.error_handle = k_no_error_information;
    array.device_count = 1;
    append_structure(to, array, Type::MemoryArray, {});

    MemoryDevice device{};
    device.array_handle = k_memory_array;
    device.error_handle = k_no_error_information;
    device.total_width = device.data_width = k_width_unknown;
    if (size / k_mib < k_use_extended_size) {
        device.size = static_cast<uint16_t>(size / k_mib);
    } else {
        device.size = k_use_extended_size;
        device.extended_size = static_cast<uint32_t>(size / k_mib);
    }
    device.form_factor = k_form_dimm;
    device.device_locator = 1;
    device.memory_type = k_memory_type_ram;
    device.type_detail = k_type_detail_other;
    device.manufacturer = 2;
    append_structure(to, device, Type::MemoryDevice, {"DIMM 0", k_vendor});

    uint8_t index = 0;
    for (AddressRange range :
         {AddressRange{0, machine.low_ram_size}, AddressRange{0x1'0000'0000, machine.high_ram_size}}) {
        if (range.size == 0) continue;
        MemoryArrayMapping mapping{};
        uint64_t last_kib = range.end() / 1024 - 1;
        if (last_kib < k_use_extended_address) {
            mapping.start = static_cast<uint32_t>(range.base / 1024);
            mapping.end = static_cast<uint32_t>(last_kib);
        } else {
            mapping.start = mapping.end = k_use_extended_address;
            mapping.extended_start = range.base;
            mapping.extended_end = range.end() - 1;
        }
        mapping.array_handle = k_memory_array;
        mapping.partition_width = 1;
        append_structure(to, mapping, Type::MemoryArrayMapping, {}, index++);
    }
}

} // namespace

SmbiosItems build_smbios(MachineDescription const& machine) {
    SmbiosItems items;
    append_bios(items.tables);
    append_system(items.tables, machine);
    append_chassis(items.tables);
    append_processor(items.tables, machine);
    append_memory(items.tables, machine);
    append_structure(items.tables, BootInformation{}, Type::BootInformation, {});
    append_structure(items.tables, EndOfTable{}, Type::EndOfTable, {});

    EntryPoint anchor{};
    anchor.table_maximum_size = static_cast<uint32_t>(items.tables.size());
    uint8_t sum = 0;
    for (std::byte byte : object_bytes(anchor)) sum = static_cast<uint8_t>(sum + static_cast<uint8_t>(byte));
    anchor.checksum = static_cast<uint8_t>(-sum);
    Bytes bytes = object_bytes(anchor);
    items.anchor.assign(bytes.begin(), bytes.end());
    return items;
}

} // namespace coffer::firmware
