#include <gtest/gtest.h>

#include "tests/support/device_conformance.hpp"
#include "tests/support/pci_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

void hammer_config(PciFunction& function) {
    for (unsigned value : {0x00U, 0xFFU, 0x5AU}) {
        for (uint16_t offset = 0; offset < 4096; ++offset) {
            for (size_t size : {1U, 2U, 4U}) {
                if (offset % 4 + size > 4) continue;
                ByteVector bytes(size, static_cast<std::byte>(value));
                function.config_write(offset, bytes);
                function.config_read(offset, bytes);
            }
        }
    }
}

TEST(PciConformance, HostBridge) {
    PciRig rig;
    HostBridge bridge({.low_ram_bytes = 0x8000'0000, .high_ram_bytes = 0x8000'0000, .on_pam = {}}, rig.host);
    ASSERT_TRUE(rig.host.add(0, 0, bridge).has_value());
    expect_save_restore_reset(bridge, [&] {
        rig.config_write<uint32_t>(0, 0x60, 0xE000'0001);
        rig.config_write<uint8_t>(0, 0x9D, 0x1A);
    });
    expect_truncated_state_refused(bridge);
    hammer_config(bridge);
    EXPECT_EQ(rig.config_read(0, 0), 0x29C0'8086U);
}

TEST(PciConformance, LpcBridge) {
    PciRig rig;
    expect_save_restore_reset(rig.lpc, [&] {
        rig.config_write<uint32_t>(31, 0x40, 0x600);
        rig.config_write<uint16_t>(31, 0xA0, 0x10);
    });
    expect_truncated_state_refused(rig.lpc);
    hammer_config(rig.lpc);
    EXPECT_EQ(rig.config_read(31, 0), 0x2918'8086U);
}

TEST(PciConformance, Host) {
    PciRig rig;
    expect_save_restore_reset(rig.host, [&] { rig.out<uint32_t>(0xCF8, 0x8000'F800); });
    expect_truncated_state_refused(rig.host);
    hammer_pio(rig.host, 8);
    hammer_mmio(rig.host, 0x2000);
    EXPECT_EQ(rig.config_read(31, 0), 0x2918'8086U);
}

} // namespace
} // namespace coffer::tests
