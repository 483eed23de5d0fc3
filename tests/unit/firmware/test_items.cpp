#include <map>
#include <set>

#include <gtest/gtest.h>

#include "firmware/ovmf_layout.hpp"
#include "linked_tables.hpp"

namespace coffer::tests {
namespace {

using namespace firmware;

constexpr uint64_t k_gib = 0x4000'0000;

std::map<std::string, ByteVector> items_of(MachineDescription const& machine) {
    std::map<std::string, ByteVector> result;
    auto items = build_firmware_items(machine);
    if (!items) {
        ADD_FAILURE() << items.error().message();
        return result;
    }
    for (auto& item : *items) EXPECT_TRUE(result.emplace(item.name, item.bytes).second) << item.name << " twice";
    return result;
}

TEST(FirmwareItems, TheSameMachineGivesTheSameBytes) {
    EXPECT_EQ(items_of(test_machine()), items_of(test_machine()));
}

TEST(FirmwareItems, TpmItemsFollowTheTpm) {
    MachineDescription machine = test_machine();
    auto items = items_of(machine);
    ByteVector config = items["etc/tpm/config"];
    ASSERT_EQ(config.size(), 6u);
    EXPECT_EQ(load_le<uint32_t>(config), 0xFED4'5000u);
    EXPECT_EQ(load_le<uint8_t>(config, 4), 2);
    EXPECT_EQ(load_le<uint8_t>(config, 5), 1);
    EXPECT_EQ(items["etc/tpm/log"].size(), 0x1'0000u);

    machine.tpm.kind = TpmKind::None;
    items = items_of(machine);
    EXPECT_EQ(items.count("etc/tpm/config"), 0u);
    EXPECT_EQ(items.count("etc/tpm/log"), 0u);
}

TEST(FirmwareItems, E820HasRamAndReservedRanges) {
    MachineDescription machine = test_machine();
    machine.high_ram_size = 3 * k_gib;
    machine.reserved = {{0xFEFF'C000, 0x4000}};
    ByteVector map = items_of(machine)["etc/e820"];
    ASSERT_EQ(map.size(), 4u * 20);
    struct Entry {
        uint64_t base, length;
        uint32_t type;
    };
    std::vector<Entry> const expected{
        {0, machine.low_ram_size, 1}, {4 * k_gib, 3 * k_gib, 1}, {0xFED4'5000, 0x1000, 2}, {0xFEFF'C000, 0x4000, 2}};
    for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ(load_le<uint64_t>(map, i * 20), expected[i].base);
        EXPECT_EQ(load_le<uint64_t>(map, i * 20 + 8), expected[i].length);
        EXPECT_EQ(load_le<uint32_t>(map, i * 20 + 16), expected[i].type);
    }
}

TEST(FirmwareItems, BootItems) {
    MachineDescription machine = test_machine();
    auto items = items_of(machine);
    EXPECT_EQ(items.count("bootorder"), 0u);
    EXPECT_EQ(items["etc/boot-menu-wait"], ByteVector(2));
    ByteVector states = items["etc/system-states"];
    ASSERT_EQ(states.size(), 6u);
    EXPECT_EQ(load_le<uint8_t>(states, 3) & 0x80, 0) << "no S3";

    machine.boot_order = {nvme_boot_path(4, 0), nvme_boot_path(0x1F, 2)};
    constexpr std::string_view k_expected =
        "/pci@i0cf8/pci8086,5845@4/namespace@1,0\n/pci@i0cf8/pci8086,5845@1f,2/namespace@1,0\n";
    ByteVector expected(as_bytes(k_expected).begin(), as_bytes(k_expected).end());
    expected.push_back(std::byte{0});
    EXPECT_EQ(items_of(machine)["bootorder"], expected);
}

TEST(FirmwareItems, ImpossibleMachinesAreRefused) {
    auto refused = [](auto change) {
        MachineDescription machine = test_machine();
        change(machine);
        auto items = build_firmware_items(machine);
        return !items && items.error().code() == ErrorCode::InvalidArgument;
    };
    EXPECT_FALSE(refused([](auto&) {}));
    EXPECT_TRUE(refused([](auto& m) { m.name.clear(); }));
    EXPECT_TRUE(refused([](auto& m) { m.name = std::string(65, 'x'); }));
    EXPECT_TRUE(refused([](auto& m) { m.name = std::string("a\0b", 3); }));
    EXPECT_TRUE(refused([](auto& m) { m.cpu_count = 0; }));
    EXPECT_TRUE(refused([](auto& m) { m.cpu_count = 256; }));
    EXPECT_TRUE(refused([](auto& m) { m.low_ram_size = 0; }));
    EXPECT_TRUE(refused([](auto& m) { m.low_ram_size = 0x1234'5678; }));
    EXPECT_TRUE(refused([](auto& m) { m.low_ram_size = 0xB010'0000; }));
    EXPECT_TRUE(refused([](auto& m) { m.high_ram_size = UINT64_MAX & ~0xF'FFFFull; }));
    EXPECT_TRUE(refused([](auto& m) { m.ecam_base += 0x1000; }));
    EXPECT_TRUE(refused([](auto& m) { m.ecam_base = 0x1'0000'0000; }));
    EXPECT_TRUE(refused([](auto& m) { m.pci_window32.size = 0; }));
    EXPECT_TRUE(refused([](auto& m) { m.pci_window32.size = k_gib + 1; }));
    EXPECT_TRUE(refused([](auto& m) { m.pci_window32.base = 0xB000'0000; }));
    EXPECT_TRUE(refused([](auto& m) { m.pci_window64.size = 0; }));
    EXPECT_TRUE(refused([](auto& m) { m.pci_window64 = {5 * k_gib, k_gib}, m.high_ram_size = 2 * k_gib; }));
    EXPECT_TRUE(refused([](auto& m) { m.pci_window64.size = UINT64_MAX; }));
    EXPECT_TRUE(refused([](auto& m) { m.tpm.base += 4; }));
}

// Bases that Debian 12's OVMF gave a 64-bit BAR under QEMU for the same CPUID.
TEST(OvmfLayout, Window64AsTheFirmwareComputesIt) {
    auto base = [](CpuVendor vendor, uint8_t bits, bool pages_1g, uint64_t ram_end = 0x2000'0000) {
        return ovmf_pci_window64({vendor, bits, pages_1g}, ram_end).base;
    };
    EXPECT_EQ(base(CpuVendor::Amd, 40, true), 0xE0'0000'0000u);
    EXPECT_EQ(base(CpuVendor::Intel, 39, true), 0x70'0000'0000u);
    EXPECT_EQ(base(CpuVendor::Intel, 36, true), 0x8'0000'0000u);
    EXPECT_EQ(base(CpuVendor::Amd, 46, true), 0x3800'0000'0000u);
    EXPECT_EQ(base(CpuVendor::Amd, 46, false), 0xE0'0000'0000u);
    // Not trusted: 40 bits that an Intel CPU never has.
    EXPECT_EQ(base(CpuVendor::Intel, 40, true), 0x8'0000'0000u);
    // Above RAM, aligned to its own size.
    EXPECT_EQ(base(CpuVendor::Intel, 36, true, 33 * k_gib), 0x10'0000'0000u);
    EXPECT_EQ(ovmf_pci_window64({CpuVendor::Amd, 40, true}, k_gib).size, uint64_t{1} << 37);
    EXPECT_EQ(ovmf_pci_window64({CpuVendor::Intel, 36, true}, k_gib).size, 32 * k_gib);
}

struct Structure {
    uint8_t type;
    uint16_t handle;
    ByteVector bytes;
    std::vector<std::string> strings;
};

// An independent reading of DSP0134 section 6.1: formatted part, strings, double NUL.
std::vector<Structure> parse_smbios(Bytes table) {
    std::vector<Structure> all;
    size_t at = 0;
    while (at < table.size()) {
        uint8_t length = load_le<uint8_t>(table, at + 1);
        Structure structure{load_le<uint8_t>(table, at), load_le<uint16_t>(table, at + 2), {}, {}};
        Bytes formatted = table.subspan(at, length);
        structure.bytes.assign(formatted.begin(), formatted.end());
        at += length;
        if (load_le<uint16_t>(table, at) == 0) {
            at += 2;
        } else {
            while (table[at] != std::byte{0}) {
                std::string text;
                for (; table[at] != std::byte{0}; ++at) text.push_back(static_cast<char>(table[at]));
                structure.strings.push_back(text);
                ++at;
            }
            ++at;
        }
        all.push_back(structure);
    }
    return all;
}

TEST(Smbios, AnchorAndStructures) {
    MachineDescription machine = test_machine();
    machine.name = "box";
    machine.high_ram_size = 40000 * k_gib;
    machine.pci_window64 = {uint64_t{1} << 46, uint64_t{1} << 43};
    auto items = items_of(machine);
    ByteVector anchor = items["etc/smbios/smbios-anchor"];
    ByteVector tables = items["etc/smbios/smbios-tables"];
    ASSERT_EQ(anchor.size(), 24u);
    EXPECT_EQ(byte_sum(anchor), 0);
    EXPECT_EQ(load_le<uint8_t>(anchor, 7), 3);
    EXPECT_EQ(load_le<uint32_t>(anchor, 12), tables.size());

    std::map<uint8_t, std::vector<Structure>> by_type;
    std::set<uint16_t> handles;
    auto parsed = parse_smbios(tables);
    for (auto& structure : parsed) {
        EXPECT_TRUE(handles.insert(structure.handle).second) << "a handle twice";
        by_type[structure.type].push_back(structure);
    }
    for (int type : {0, 1, 3, 4, 16, 17, 32, 127}) EXPECT_EQ(by_type[static_cast<uint8_t>(type)].size(), 1u) << type;
    EXPECT_EQ(by_type[19].size(), 2u);
    EXPECT_EQ(parsed.back().type, 127);

    Structure const& system = by_type[1][0];
    EXPECT_EQ(system.strings.at(load_le<uint8_t>(system.bytes, 7) - 1u), "box");
    EXPECT_EQ(load_le<uint32_t>(system.bytes, 8), 0x00010203u) << "the UUID's first field is little-endian";
    EXPECT_EQ(load_le<uint8_t>(system.bytes, 16), 8) << "and its last eight bytes are as printed";
    EXPECT_TRUE(load_le<uint8_t>(by_type[0][0].bytes, 19) & 1u << 4) << "a virtual machine";

    uint64_t ram = machine.low_ram_size + machine.high_ram_size;
    EXPECT_EQ(load_le<uint32_t>(by_type[16][0].bytes, 7), 0x8000'0000u);
    EXPECT_EQ(load_le<uint64_t>(by_type[16][0].bytes, 15), ram);
    EXPECT_EQ(load_le<uint16_t>(by_type[17][0].bytes, 12), 0x7FFF);
    EXPECT_EQ(load_le<uint32_t>(by_type[17][0].bytes, 28), ram / 0x10'0000);
    EXPECT_EQ(load_le<uint32_t>(by_type[19][0].bytes, 8), machine.low_ram_size / 1024 - 1);
    EXPECT_EQ(load_le<uint64_t>(by_type[19][1].bytes, 23), 4 * k_gib + machine.high_ram_size - 1);
}

} // namespace
} // namespace coffer::tests
