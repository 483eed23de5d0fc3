#include <algorithm>
#include <set>

#include <gtest/gtest.h>

#include "devices/chipset/hpet_spec.hpp"
#include "devices/chipset/pm_block_spec.hpp"
#include "devices/pci/interrupt_routing.hpp"
#include "linked_tables.hpp"
#include "vmm/layout.hpp"

namespace coffer::tests {
namespace {

using firmware::build_firmware_items;
using firmware::MachineDescription;
using firmware::TpmKind;

LinkedTables linked(MachineDescription const& machine) {
    auto items = build_firmware_items(machine);
    if (!items) {
        ADD_FAILURE() << items.error().message();
        return {};
    }
    return link_tables(*items);
}

size_t count(Bytes in, Bytes what) {
    size_t found = 0;
    for (auto at = in.begin(); (at = std::search(at, in.end(), what.begin(), what.end())) != in.end(); ++at) ++found;
    return found;
}
template <class T>
size_t count_value(Bytes in, T value) {
    return count(in, object_bytes(value));
}

// Every kind of machine: the choices that change which tables there are, or their sizes.
std::vector<MachineDescription> machines() {
    std::vector<MachineDescription> all;
    for (TpmKind kind : {TpmKind::None, TpmKind::Crb, TpmKind::Tis}) {
        for (uint32_t cpus : {1u, 3u, 9u, 255u}) {
            MachineDescription machine = test_machine();
            machine.tpm.kind = kind;
            machine.cpu_count = cpus;
            if (cpus == 3) machine.hpet.reset();
            if (cpus == 9) machine.high_ram_size = 0x8000'0000;
            all.push_back(machine);
        }
    }
    return all;
}

TEST(Acpi, EveryTableAddsUpToZeroOnceLinked) {
    for (MachineDescription const& machine : machines()) {
        LinkedTables all = linked(machine);
        EXPECT_EQ(byte_sum(Bytes(all.rsdp).first(20)), 0);
        EXPECT_EQ(byte_sum(all.rsdp), 0);
        for (LinkedTable const& table : all.tables) {
            if (table.signature == "FACS") continue;
            EXPECT_EQ(byte_sum(table.bytes), 0) << table.signature;
            EXPECT_NE(load_le<uint8_t>(table.bytes, 9), 0) << table.signature << ": a checksum that nobody filled";
        }
    }
}

TEST(Acpi, TheRightTablesAreThere) {
    for (MachineDescription const& machine : machines()) {
        std::multiset<std::string> expected{"XSDT", "FACP", "APIC", "MCFG", "WAET", "SSDT", "DSDT", "FACS"};
        if (machine.hpet) expected.insert({"HPET", "SSDT"});
        if (machine.tpm.kind != TpmKind::None) expected.insert({"TPM2", "SSDT"});
        std::multiset<std::string> found;
        for (LinkedTable const& table : linked(machine).tables) found.insert(table.signature);
        EXPECT_EQ(found, expected);
    }
}

TEST(Acpi, RsdpIsRevision2InTheFSegment) {
    LinkedTables all = linked(test_machine());
    EXPECT_EQ(count(all.rsdp, as_bytes("RSD PTR ")), 1u);
    EXPECT_EQ(load_le<uint8_t>(all.rsdp, 15), 2);
    EXPECT_EQ(load_le<uint32_t>(all.rsdp, 20), 36u);
    uint64_t address = all.placed.at("etc/acpi/rsdp");
    EXPECT_EQ(address % 16, 0u);
    EXPECT_TRUE(address >= 0xF'0000 && address < 0x10'0000);
}

TEST(Acpi, FadtSaysWhereThePowerBlockIsAndHowToReset) {
    MachineDescription machine = test_machine();
    ByteVector fadt = linked(machine).find("FACP").bytes;
    ASSERT_EQ(fadt.size(), 276u);
    EXPECT_EQ(load_le<uint8_t>(fadt, 8), 6);
    EXPECT_EQ(load_le<uint16_t>(fadt, 46), vmm::layout::k_gsi_sci);
    EXPECT_EQ(load_le<uint32_t>(fadt, 48), 0u) << "no SMI command: always in ACPI mode";
    constexpr uint32_t k_pm = vmm::layout::k_pm_base.value();
    EXPECT_EQ(load_le<uint32_t>(fadt, 56), k_pm + devices::pm::PM1_STS);
    EXPECT_EQ(load_le<uint32_t>(fadt, 64), k_pm + devices::pm::PM1_CNT);
    EXPECT_EQ(load_le<uint32_t>(fadt, 76), k_pm + devices::pm::PM1_TMR);
    EXPECT_EQ(load_le<uint32_t>(fadt, 80), k_pm + devices::pm::GPE0_STS);
    EXPECT_EQ(load_le<uint8_t>(fadt, 92), 2 * (devices::pm::GPE0_EN - devices::pm::GPE0_STS));
    EXPECT_EQ(load_le<uint64_t>(fadt, 152), k_pm);
    EXPECT_EQ(load_le<uint64_t>(fadt, 176), k_pm + 4);
    EXPECT_EQ(load_le<uint64_t>(fadt, 212), k_pm + 8);
    uint32_t flags = load_le<uint32_t>(fadt, 112);
    EXPECT_TRUE(flags & 1u << 10) << "reset register supported";
    EXPECT_FALSE(flags & 1u << 4) << "the power button is a fixed feature";
    EXPECT_FALSE(flags & 1u << 8) << "the PM timer has 24 bits";
    EXPECT_FALSE(flags & 1u << 18);
    EXPECT_EQ(load_le<uint8_t>(fadt, 116), 1) << "system I/O";
    EXPECT_EQ(load_le<uint8_t>(fadt, 117), 8);
    EXPECT_EQ(load_le<uint64_t>(fadt, 120), vmm::layout::k_reset_control.value());
    EXPECT_EQ(load_le<uint8_t>(fadt, 128), machine.reset_value);
    EXPECT_EQ(load_le<uint64_t>(fadt, 132), 0u) << "FIRMWARE_CTRL is used, so the wide one is 0";
    EXPECT_EQ(load_le<uint64_t>(fadt, 140), load_le<uint32_t>(fadt, 40));

    machine.cpu_count = 9;
    EXPECT_TRUE(load_le<uint32_t>(linked(machine).find("FACP").bytes, 112) & 1u << 18);
}

TEST(Acpi, MadtListsEveryCpuAndTheTwoOverrides) {
    MachineDescription machine = test_machine();
    machine.cpu_count = 5;
    ByteVector madt = linked(machine).find("APIC").bytes;
    EXPECT_EQ(load_le<uint32_t>(madt, 36), vmm::layout::k_local_apic.value());
    EXPECT_EQ(load_le<uint32_t>(madt, 40), 1u);
    std::vector<unsigned> cpus;
    std::map<unsigned, std::pair<uint32_t, uint16_t>> overrides;
    size_t io_apics = 0, nmis = 0;
    for (size_t at = 44; at < madt.size(); at += load_le<uint8_t>(madt, at + 1)) {
        ASSERT_GE(load_le<uint8_t>(madt, at + 1), 2);
        switch (load_le<uint8_t>(madt, at)) {
        case 0:
            EXPECT_EQ(load_le<uint8_t>(madt, at + 2), load_le<uint8_t>(madt, at + 3));
            EXPECT_EQ(load_le<uint32_t>(madt, at + 4), 1u);
            cpus.push_back(load_le<uint8_t>(madt, at + 3));
            break;
        case 1:
            ++io_apics;
            EXPECT_EQ(load_le<uint32_t>(madt, at + 4), vmm::layout::k_ioapic.value());
            EXPECT_EQ(load_le<uint32_t>(madt, at + 8), 0u);
            break;
        case 2:
            overrides[load_le<uint8_t>(madt, at + 3)] = {load_le<uint32_t>(madt, at + 4),
                                                         load_le<uint16_t>(madt, at + 8)};
            break;
        case 4:
            ++nmis;
            EXPECT_EQ(load_le<uint8_t>(madt, at + 2), 0xFF);
            EXPECT_EQ(load_le<uint8_t>(madt, at + 5), 1);
            break;
        default: ADD_FAILURE() << "unexpected entry";
        }
    }
    EXPECT_EQ(cpus, (std::vector<unsigned>{0, 1, 2, 3, 4}));
    EXPECT_EQ(io_apics, 1u);
    EXPECT_EQ(nmis, 1u);
    ASSERT_EQ(overrides.size(), 2u);
    EXPECT_EQ(overrides[0], (std::pair<uint32_t, uint16_t>{2, 0}));
    EXPECT_EQ(overrides[9], (std::pair<uint32_t, uint16_t>{9, 0xD}));
}

TEST(Acpi, Tpm2NamesTheInterfaceAndTheLogArea) {
    MachineDescription machine = test_machine();
    LinkedTables crb = linked(machine);
    ByteVector table = crb.find("TPM2").bytes;
    ASSERT_EQ(table.size(), 76u);
    EXPECT_EQ(load_le<uint8_t>(table, 8), 4);
    EXPECT_EQ(load_le<uint64_t>(table, 40), vmm::layout::k_tpm.value() + 0x40);
    EXPECT_EQ(load_le<uint32_t>(table, 48), 7u);
    EXPECT_EQ(load_le<uint32_t>(table, 64), 0x1'0000u);
    EXPECT_EQ(load_le<uint64_t>(table, 68), crb.placed.at("etc/tpm/log"));
    EXPECT_EQ(crb.placed.at("etc/tpm/log") % 0x1000, 0u);

    machine.tpm.kind = TpmKind::Tis;
    table = linked(machine).find("TPM2").bytes;
    EXPECT_EQ(load_le<uint64_t>(table, 40), 0u);
    EXPECT_EQ(load_le<uint32_t>(table, 48), 6u);
}

// The values in compiled tables: right ones at the right descriptors, and no placeholder left.
TEST(Acpi, DsdtHasTheMachinesWindows) {
    MachineDescription machine = test_machine();
    machine.pci_window32 = {0xC800'0000, 0x0400'0000};
    machine.pci_window64 = {0x30'0000'0000, 0x8'0000'0000};
    machine.ecam_base = 0xA000'0000;
    machine.pm_base = 0x480;
    ByteVector dsdt = linked(machine).find("DSDT").bytes;

    // ACPI 6.4 section 6.4.3.5.2: DWord descriptor 0x87, length 23, granularity, minimum, maximum, offset, length.
    size_t windows32 = 0, windows64 = 0;
    for (size_t at = 36; at + 46 <= dsdt.size(); ++at) {
        if (load_le<uint8_t>(dsdt, at) == 0x87 && load_le<uint16_t>(dsdt, at + 1) == 23 &&
            load_le<uint32_t>(dsdt, at + 10) == 0xC800'0000) {
            ++windows32;
            EXPECT_EQ(load_le<uint32_t>(dsdt, at + 14), 0xCBFF'FFFFu);
            EXPECT_EQ(load_le<uint32_t>(dsdt, at + 22), 0x0400'0000u);
        }
        if (load_le<uint8_t>(dsdt, at) == 0x8A && load_le<uint16_t>(dsdt, at + 1) == 43) {
            ++windows64;
            EXPECT_EQ(load_le<uint64_t>(dsdt, at + 14), 0x30'0000'0000u);
            EXPECT_EQ(load_le<uint64_t>(dsdt, at + 22), 0x37'FFFF'FFFFu);
            EXPECT_EQ(load_le<uint64_t>(dsdt, at + 38), 0x8'0000'0000u);
        }
    }
    EXPECT_EQ(windows32, 1u);
    EXPECT_EQ(windows64, 1u);
    EXPECT_EQ(count_value<uint32_t>(dsdt, 0xA000'0000), 1u);
    constexpr std::array<uint8_t, 8> k_pm_ports{0x47, 0x01, 0x80, 0x04, 0x80, 0x04, 0x01, 0x80};
    EXPECT_EQ(count_value(dsdt, k_pm_ports), 1u);
}

TEST(Acpi, SoftOffIsTheTypeThatThePowerBlockTakes) {
    ByteVector dsdt = linked(test_machine()).find("DSDT").bytes;
    // Name (_S5, Package (4) { type, ... }); integers 0 and 1 have opcodes of their own.
    static_assert(devices::pm::k_sleep_type_s5 == 0);
    ByteVector name{std::byte{0x08}};
    append(name, as_bytes("_S5_"));
    append(name, object_bytes(std::array<uint8_t, 4>{0x12, 0x06, 0x04, 0x00}));
    ByteVector rooted{std::byte{0x08}, std::byte{'\\'}};
    append(rooted, Bytes(name).subspan(1));
    EXPECT_EQ(count(dsdt, name) + count(dsdt, rooted), 1u);
}

TEST(Acpi, PrtFollowsThePciRouting) {
    ByteVector dsdt = linked(test_machine()).find("DSDT").bytes;
    // Package(4) { DWord slot << 16 | 0xFFFF, pin, 0, GSI }: 0x0C dword, pin 0 and 1 as opcodes 0x00 and 0x01.
    size_t entries = 0;
    for (uint32_t slot = 0; slot < 32; ++slot) {
        for (uint32_t pin = 0; pin < 4; ++pin) {
            ByteVector entry{std::byte{4}};
            if (slot == 0) {
                append(entry, object_bytes(std::array<uint8_t, 3>{0x0B, 0xFF, 0xFF}));
            } else {
                entry.push_back(std::byte{0x0C});
                append(entry, object_bytes(slot << 16 | 0xFFFF));
            }
            if (pin > 1) entry.push_back(std::byte{0x0A});
            entry.push_back(static_cast<std::byte>(pin));
            entry.push_back(std::byte{0});
            entry.push_back(std::byte{0x0A});
            entry.push_back(static_cast<std::byte>(devices::gsi_of(slot, pin)));
            EXPECT_EQ(count(dsdt, entry), 1u) << "slot " << slot << " pin " << pin;
            ++entries;
        }
    }
    EXPECT_EQ(entries, 128u);
}

TEST(Acpi, TpmDeviceCoversItsRegisters) {
    for (TpmKind kind : {TpmKind::Crb, TpmKind::Tis}) {
        MachineDescription machine = test_machine();
        machine.tpm.kind = kind;
        if (kind == TpmKind::Tis) machine.tpm.gsi = 5;
        ByteVector ssdt = linked(machine).find("SSDT", "TPM2").bytes;
        // Memory32Fixed: 0x86, length 9, read-write, base, length (section 6.4.3.4).
        struct [[gnu::packed]] {
            uint8_t tag = 0x86;
            uint16_t length = 9;
            uint8_t writable = 1;
            uint32_t base = static_cast<uint32_t>(vmm::layout::k_tpm.value());
            uint32_t size;
        } expected;
        expected.size =
            static_cast<uint32_t>(kind == TpmKind::Crb ? vmm::layout::k_tpm_crb_size : vmm::layout::k_tpm_tis_size);
        EXPECT_EQ(count_value(ssdt, expected), 1u);
        // Extended interrupt descriptor: 0x89, length 6, consumer, level, active low, exclusive, one interrupt
        // (section 6.4.3.6).
        struct [[gnu::packed]] {
            uint8_t tag = 0x89;
            uint16_t length = 6;
            uint8_t flags = 0x05;
            uint8_t count = 1;
            uint32_t gsi = 5;
        } interrupt;
        EXPECT_EQ(count_value(ssdt, interrupt), kind == TpmKind::Tis ? 1u : 0u);
        EXPECT_EQ(count_value<uint32_t>(ssdt, static_cast<uint32_t>(vmm::layout::k_tpm_ppi.value())), 2u);
        EXPECT_EQ(count(ssdt, as_bytes("1.3")), 1u);
        EXPECT_EQ(count(ssdt, as_bytes("MSFT0101")), 1u);
    }
}

TEST(Acpi, McfgAndHpetPointAtTheHardware) {
    LinkedTables all = linked(test_machine());
    ByteVector mcfg = all.find("MCFG").bytes;
    EXPECT_EQ(load_le<uint64_t>(mcfg, 44), 0xB000'0000u);
    EXPECT_EQ(load_le<uint16_t>(mcfg, 52), 0);
    EXPECT_EQ(load_le<uint8_t>(mcfg, 54), 0);
    EXPECT_EQ(load_le<uint8_t>(mcfg, 55), 0xFF);
    ByteVector hpet = all.find("HPET").bytes;
    EXPECT_EQ(load_le<uint32_t>(hpet, 36), static_cast<uint32_t>(devices::hpet::k_capabilities));
    EXPECT_EQ(load_le<uint64_t>(hpet, 44), vmm::layout::k_hpet.value());
}

} // namespace
} // namespace coffer::tests
