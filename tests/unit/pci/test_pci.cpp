#include <gtest/gtest.h>

#include "base/tagged.hpp"
#include "tests/support/pci_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

class Registers final : public MmioDevice, public PioDevice {
public:
    explicit Registers(uint32_t tag) : m_tag(tag) {}
    IoStatus mmio_read(uint64_t offset, MutBytes to) override {
        store_le_sized(to, m_tag + offset);
        return IoStatus::Ok;
    }
    IoStatus mmio_write(uint64_t, Bytes) override { return IoStatus::Ok; }
    IoStatus pio_read(uint16_t offset, MutBytes to) override { return mmio_read(offset, to); }
    IoStatus pio_write(uint16_t, Bytes from) override {
        last_written = load_le_sized(from);
        return IoStatus::Ok;
    }
    uint64_t last_written = 0;

private:
    uint32_t m_tag;
};

struct PlainState {
    PciState pci;
    template <class V>
    void fields(V& v) {
        v.required(1, pci);
    }
};

class Plain final : public PciFunction {
public:
    explicit Plain(uint32_t tag, bool express = true)
        : PciFunction({.vendor = 0x1234,
                       .device = 0x5678,
                       .class_code = 0xFF0102,
                       .revision = 3,
                       .subsystem_vendor = 1,
                       .subsystem = 2,
                       .interrupt_pin = 1,
                       .express = express}),
          registers(tag) {
        add_memory_bar(0, BarKind::Memory64, 0x4000, registers);
        add_io_bar(3, 32, registers);
        add_msix(4, 2);
        add_msi(4);
        add_power_management();
        if (express) add_express();
    }
    std::string_view unit_name() const noexcept override { return "plain"; }
    void reset(ResetKind) noexcept override { reset_pci(); }
    Result<ByteVector> save() const override { return encode_fields(PlainState{save_pci()}); }
    Result<void> restore(Bytes state) override {
        PlainState decoded;
        TRY(decode_fields(state, decoded));
        TRY(check_pci(decoded.pci));
        restore_pci(decoded.pci);
        return {};
    }
    using PciFunction::set_intx;
    using PciFunction::signal_vector;
    Registers registers;
};

struct Pci : ::testing::Test {
    PciRig rig;
    Plain first{0x1000'0000};
    Plain second{0x2000'0000};
    void SetUp() override {
        ASSERT_TRUE(rig.host.add(3, 0, first).has_value());
        ASSERT_TRUE(rig.host.add(11, 0, second).has_value());
    }
};

TEST_F(Pci, ConfigurationPortsReachFunctionsAndNothingElse) {
    EXPECT_EQ(rig.config_read(3, 0), 0x5678'1234U);
    EXPECT_EQ(rig.config_read<uint16_t>(3, 2), 0x5678U);
    EXPECT_EQ(rig.config_read<uint8_t>(3, 0x0B), 0xFFU);
    EXPECT_EQ(rig.config_read(3, 8), 0xFF01'0203U);
    EXPECT_EQ(rig.config_read(4, 0), 0xFFFF'FFFFU);
    EXPECT_EQ(rig.config_read(3, 0, 1), 0xFFFF'FFFFU);
    EXPECT_EQ(rig.config_read(3, 0, 0, 1), 0xFFFF'FFFFU);
    rig.out<uint32_t>(0xCF8, 0x0000'1800); // not enabled
    EXPECT_EQ(rig.in(0xCFC), 0xFFFF'FFFFU);
    rig.out<uint32_t>(0xCF8, 0xFFFF'FFFF);
    EXPECT_EQ(rig.in(0xCF8), 0x80FF'FFFCU);
    rig.config_write<uint32_t>(3, 0, 0);
    EXPECT_EQ(rig.config_read(3, 0), 0x5678'1234U) << "the ids are read-only";
    EXPECT_EQ(rig.config_read<uint16_t>(3, 6) & 0x10, 0x10);
    EXPECT_FALSE(rig.host.add(3, 0, second).has_value());
}

TEST(PciPorts, ResetControlIsReachedThroughTheConfigurationPorts) {
    MmioBus mmio;
    PioBus pio;
    FakeMsiSink msi;
    Registers reset_control(0x55);
    PciHost host({.mmio = mmio, .pio = pio, .msi = msi, .reset_control = &reset_control});
    ASSERT_TRUE(host.connect().has_value());
    ByteVector byte{std::byte{6}};
    auto hit = pio.find(IoPort{0xCF9}, 1);
    ASSERT_TRUE(hit);
    EXPECT_EQ(hit->target->pio_write(hit->offset, byte), IoStatus::Ok);
    EXPECT_EQ(reset_control.last_written, 6U);
    EXPECT_EQ(hit->target->pio_read(hit->offset, byte), IoStatus::Ok);
    EXPECT_EQ(byte[0], std::byte{0x55});
}

TEST_F(Pci, BarsAreSizedPlacedAndMoved) {
    rig.config_write<uint32_t>(3, 0x10, 0xFFFF'FFFF);
    rig.config_write<uint32_t>(3, 0x14, 0xFFFF'FFFF);
    EXPECT_EQ(rig.config_read(3, 0x10), 0xFFFF'C004U);
    EXPECT_EQ(rig.config_read(3, 0x14), 0xFFFF'FFFFU);
    rig.config_write<uint32_t>(3, 0x1C, 0xFFFF'FFFF);
    EXPECT_EQ(rig.config_read(3, 0x1C), 0xFFFF'FFE1U);
    rig.config_write<uint32_t>(3, 0x20, 0xFFFF'FFFF);
    EXPECT_EQ(rig.config_read(3, 0x20), 0U) << "no such BAR";

    rig.config_write<uint32_t>(3, 0x10, 0xC000'0000);
    rig.config_write<uint32_t>(3, 0x14, 0x0000'0008);
    rig.config_write<uint32_t>(3, 0x1C, 0x6000);
    EXPECT_EQ(rig.read(0x8'C000'0010), 0xFFFF'FFFFU) << "decoding is off";
    rig.config_write<uint16_t>(3, 4, 2);
    EXPECT_EQ(rig.read(0x8'C000'0010), 0x1000'0010U);
    EXPECT_EQ(rig.in(0x6004), 0xFFFF'FFFFU);
    rig.config_write<uint16_t>(3, 4, 3);
    EXPECT_EQ(rig.in(0x6004), 0x1000'0004U);
    rig.config_write<uint32_t>(3, 0x14, 0x0000'0009);
    EXPECT_EQ(rig.read(0x8'C000'0010), 0xFFFF'FFFFU);
    EXPECT_EQ(rig.read(0x9'C000'0010), 0x1000'0010U);
    rig.config_write<uint16_t>(3, 4, 0);
    EXPECT_EQ(rig.read(0x9'C000'0010), 0xFFFF'FFFFU);
    EXPECT_EQ(rig.in(0x6004), 0xFFFF'FFFFU);
}

TEST_F(Pci, ABarOnTopOfAnotherWaitsUntilThereIsRoom) {
    rig.config_write<uint32_t>(3, 0x10, 0xC000'0000);
    rig.config_write<uint32_t>(11, 0x10, 0xC000'0000);
    rig.config_write<uint16_t>(3, 4, 2);
    rig.config_write<uint16_t>(11, 4, 2);
    EXPECT_EQ(rig.read(0xC000'0000), 0x1000'0000U);
    rig.config_write<uint16_t>(11, 4, 0);
    EXPECT_EQ(rig.read(0xC000'0000), 0x1000'0000U) << "letting go of a BAR that never was mapped takes none away";
    rig.config_write<uint16_t>(11, 4, 2);
    rig.config_write<uint16_t>(3, 4, 0);
    EXPECT_EQ(rig.read(0xC000'0000), 0x2000'0000U);
}

TEST_F(Pci, BarsThatWrapAreNotMapped) {
    rig.config_write<uint32_t>(3, 0x10, 0xFFFF'FFFF);
    rig.config_write<uint32_t>(3, 0x14, 0xFFFF'FFFF);
    rig.config_write<uint32_t>(3, 0x18, 0xFFFF'FFFF);
    rig.config_write<uint32_t>(3, 0x1C, 0xFFFF'FFFF);
    rig.config_write<uint16_t>(3, 4, 3);
    EXPECT_EQ(rig.read(0xFFFF'FFFF'FFFF'C000), 0x1000'0000U) << "the top of the space is a legal place";
    EXPECT_EQ(rig.in(0xFFE0), 0xFFFF'FFFFU);
}

TEST_F(Pci, D3HotStopsDecoding) {
    rig.config_write<uint32_t>(3, 0x10, 0xC000'0000);
    rig.enable(3);
    unsigned power = rig.find_capability(3, 0x01);
    ASSERT_NE(power, 0U);
    rig.config_write<uint16_t>(3, power + 4, 1); // D1 is not there
    EXPECT_EQ(rig.config_read<uint16_t>(3, power + 4) & 3, 0);
    rig.config_write<uint16_t>(3, power + 4, 3);
    EXPECT_EQ(rig.read(0xC000'0000), 0xFFFF'FFFFU);
    rig.config_write<uint16_t>(3, power + 4, 0);
    EXPECT_EQ(rig.read(0xC000'0000), 0x1000'0000U);
}

TEST_F(Pci, EcamFollowsPciexbar) {
    unsigned pam_calls = 0;
    HostBridge bridge({.low_ram_bytes = 0x4000'0000,
                       .high_ram_bytes = 0,
                       .on_pam = [&](unsigned index, uint8_t value) { pam_calls += index == 1 && value == 0x33; }},
                      rig.host);
    ASSERT_TRUE(rig.host.add(0, 0, bridge).has_value());
    EXPECT_EQ(rig.config_read(0, 0), 0x29C0'8086U);
    EXPECT_EQ(rig.config_read<uint16_t>(0, 0xB0), 0x4000U) << "TOLUD of 1 GiB";
    rig.config_write<uint32_t>(0, 0x60, 0);
    rig.config_write<uint32_t>(0, 0x64, 0);
    rig.config_write<uint32_t>(0, 0x60, 0xB000'0001);
    EXPECT_EQ(rig.read(0xB000'0000 + (3 << 15)), 0x5678'1234U);
    EXPECT_EQ(rig.read<uint16_t>(0xB000'0002 + (3 << 15)), 0x5678U);
    EXPECT_EQ(rig.read(0xB000'0100 + (3 << 15)), 0U) << "no extended capability";
    EXPECT_EQ(rig.read(0xB000'0100), 0xFFFF'FFFFU) << "conventional functions end at 256 bytes";
    EXPECT_EQ(rig.read(0xB000'0000 + (1 << 20)), 0xFFFF'FFFFU);
    EXPECT_EQ(rig.read<uint64_t>(0xB000'0000), ~uint64_t{0}) << "doublewords at most";
    EXPECT_EQ(rig.write<uint16_t>(0xB000'0090, 0x3330), IoStatus::Ok);
    EXPECT_EQ(pam_calls, 1U);
    // The window moves itself while it is written through.
    EXPECT_EQ(rig.write<uint32_t>(0xB000'0060, 0xE000'0005), IoStatus::Ok);
    EXPECT_EQ(rig.read(0xB000'0000), 0xFFFF'FFFFU);
    EXPECT_EQ(rig.read(0xE000'0000), 0x29C0'8086U);
    EXPECT_EQ(rig.read(0xE000'0000 + 64 * 0x10'0000), 0xFFFF'FFFFU);
    ASSERT_TRUE(rig.host.ecam());
    EXPECT_EQ(rig.host.ecam()->buses, 64U);
    // The SMRAM lock holds until reset.
    rig.config_write<uint8_t>(0, 0x9D, 0x5A);
    EXPECT_EQ(rig.config_read<uint8_t>(0, 0x9D), 0x1AU);
    rig.config_write<uint8_t>(0, 0x9D, 0x00);
    EXPECT_EQ(rig.config_read<uint8_t>(0, 0x9D), 0x1AU);
    bridge.reset(ResetKind::Cold);
    EXPECT_FALSE(rig.host.ecam());
    EXPECT_EQ(rig.config_read<uint8_t>(0, 0x9D), 0x02U);
}

TEST_F(Pci, MsiXMasksAndRemembers) {
    rig.enable_msix(3, 4, 0xC100'0000, 0x40);
    ASSERT_TRUE(first.signal_vector(1));
    ASSERT_EQ(rig.msi.messages.size(), 1U);
    EXPECT_EQ(rig.msi.messages[0], std::pair(uint64_t{0xFEE0'0000}, uint32_t{0x41}));
    rig.write<uint32_t>(0xC100'0000 + 16 * 2 + 12, 1);
    ASSERT_TRUE(first.signal_vector(2));
    ASSERT_TRUE(first.signal_vector(2));
    EXPECT_EQ(rig.msi.messages.size(), 1U);
    EXPECT_EQ(rig.read(0xC100'1000), 4U) << "the pending bit";
    rig.write<uint32_t>(0xC100'0000 + 16 * 2 + 12, 0);
    ASSERT_EQ(rig.msi.messages.size(), 2U);
    EXPECT_EQ(rig.msi.messages[1].second, 0x42U);
    EXPECT_EQ(rig.read(0xC100'1000), 0U);

    unsigned capability = rig.find_capability(3, 0x11);
    rig.config_write<uint16_t>(3, capability + 2, 0xC000);
    ASSERT_TRUE(first.signal_vector(0));
    EXPECT_EQ(rig.msi.messages.size(), 2U);
    rig.config_write<uint16_t>(3, capability + 2, 0x8000);
    ASSERT_EQ(rig.msi.messages.size(), 3U);
    EXPECT_EQ(rig.msi.messages[2].second, 0x40U);

    EXPECT_TRUE(first.signal_vector(4)) << "past the table: nothing";
    rig.config_write<uint16_t>(3, 4, 2);
    EXPECT_TRUE(first.signal_vector(1)) << "no bus master: nothing";
    EXPECT_EQ(rig.msi.messages.size(), 3U);
    EXPECT_EQ(rig.write<uint16_t>(0xC100'0000, 1), IoStatus::BadSize);
    EXPECT_EQ(rig.read<uint16_t>(0xC100'0000), 0xFFFFU);
}

TEST_F(Pci, MsiGrantsTheLowBitsOfTheData) {
    EXPECT_FALSE(first.signal_vector(0)) << "INTx is the device's to drive";
    unsigned capability = rig.find_capability(3, 0x05);
    rig.enable(3);
    rig.config_write<uint32_t>(3, capability + 4, 0xFEE0'1000);
    rig.config_write<uint16_t>(3, capability + 12, 0x4567);
    rig.config_write<uint16_t>(3, capability + 2, 0x0011); // two messages
    ASSERT_TRUE(first.signal_vector(2));
    ASSERT_TRUE(first.signal_vector(3));
    ASSERT_EQ(rig.msi.messages.size(), 2U);
    EXPECT_EQ(rig.msi.messages[0], std::pair(uint64_t{0xFEE0'1000}, uint32_t{0x4566}));
    EXPECT_EQ(rig.msi.messages[1].second, 0x4567U);
    rig.config_write<uint32_t>(3, capability + 4, 0x1000);
    ASSERT_TRUE(first.signal_vector(0));
    EXPECT_EQ(rig.msi.messages.size(), 2U) << "a message to RAM is dropped";
}

TEST_F(Pci, IntxIsWiredOrAndRouted) {
    // Slots 3 and 11 share PIRQ D, GSI 19.
    ASSERT_EQ(gsi_of(3, 0), 19U);
    ASSERT_EQ(gsi_of(11, 0), 19U);
    rig.config_write<uint8_t>(31, 0x63, 10);
    first.set_intx(true);
    EXPECT_TRUE(rig.irqs.levels[19]);
    EXPECT_TRUE(rig.irqs.levels[10]);
    EXPECT_NE(rig.config_read<uint16_t>(3, 6) & 8, 0);
    second.set_intx(true);
    first.set_intx(false);
    EXPECT_TRUE(rig.irqs.levels[19]);
    EXPECT_EQ(rig.irqs.rises[19], 1U);
    rig.config_write<uint8_t>(31, 0x63, 11);
    EXPECT_FALSE(rig.irqs.levels[10]);
    EXPECT_TRUE(rig.irqs.levels[11]);
    rig.config_write<uint8_t>(31, 0x63, 8); // reserved
    EXPECT_FALSE(rig.irqs.levels[11]);
    EXPECT_FALSE(rig.irqs.levels[8]);
    rig.config_write<uint16_t>(11, 4, 0x400);
    EXPECT_FALSE(rig.irqs.levels[19]) << "COMMAND.InterruptDisable";
    EXPECT_NE(rig.config_read<uint16_t>(11, 6) & 8, 0) << "status shows the request nevertheless";
    rig.config_write<uint16_t>(11, 4, 0);
    EXPECT_TRUE(rig.irqs.levels[19]);
    second.reset(ResetKind::Warm);
    EXPECT_FALSE(rig.irqs.levels[19]);
}

TEST_F(Pci, LpcReportsWhereItsBlocksAre) {
    EXPECT_EQ(rig.config_read(31, 0), 0x2918'8086U);
    EXPECT_FALSE(rig.pm_base);
    rig.config_write<uint32_t>(31, 0x40, 0x600);
    EXPECT_FALSE(rig.pm_base) << "ACPI_CNTL is off";
    rig.config_write<uint8_t>(31, 0x44, 0x80);
    EXPECT_EQ(rig.pm_base, IoPort{0x600});
    EXPECT_EQ(rig.config_read(31, 0x40), 0x601U);
    rig.config_write<uint32_t>(31, 0xF0, 0xFED1'C001);
    EXPECT_EQ(rig.rcba, GuestPhysAddr{0xFED1'C000});
    ByteVector state = *rig.lpc.save();
    rig.lpc.reset(ResetKind::Cold);
    EXPECT_FALSE(rig.pm_base);
    EXPECT_FALSE(rig.rcba);
    ASSERT_TRUE(rig.lpc.restore(state).has_value());
    EXPECT_EQ(rig.pm_base, IoPort{0x600});
    EXPECT_EQ(rig.rcba, GuestPhysAddr{0xFED1'C000});
}

TEST_F(Pci, RestoreMovesBarsAndLevels) {
    rig.config_write<uint32_t>(3, 0x10, 0xC000'0000);
    rig.enable_msix(3, 4, 0xC100'0000, 0x40);
    first.set_intx(true);
    ByteVector state = *first.save();
    first.reset(ResetKind::Cold);
    EXPECT_EQ(rig.read(0xC000'0000), 0xFFFF'FFFFU);
    EXPECT_FALSE(rig.irqs.levels[19]);
    ASSERT_TRUE(first.restore(state).has_value());
    EXPECT_EQ(rig.read(0xC000'0000), 0x1000'0000U);
    EXPECT_EQ(rig.read(0xC100'0018), 0x41U) << "the MSI-X table";
    EXPECT_TRUE(rig.irqs.levels[19]);
    ASSERT_TRUE(first.signal_vector(3));
    EXPECT_EQ(rig.msi.messages.back().second, 0x43U);

    PlainState forged;
    ASSERT_TRUE(decode_fields(state, forged).has_value());
    forged.pci.config[0] = std::byte{0};
    EXPECT_FALSE(first.restore(encode_fields(forged)).has_value()) << "another vendor";
    ASSERT_TRUE(decode_fields(state, forged).has_value());
    forged.pci.msix_table.resize(16);
    EXPECT_FALSE(first.restore(encode_fields(forged)).has_value());
    EXPECT_EQ(*first.save(), state);
}

} // namespace
} // namespace coffer::tests
