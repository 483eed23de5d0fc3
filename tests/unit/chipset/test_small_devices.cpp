#include "devices/chipset/cpu_hotplug.hpp"
#include "devices/chipset/reset_control.hpp"
#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

TEST(ResetControl, ResetsWhenTheCpuBitRises) {
    FakeMachineControl machine;
    devices::ResetControl control(machine);
    out(control, 0, 0x02);
    EXPECT_EQ(machine.resets, 0U);
    out(control, 0, 0x06);
    EXPECT_EQ(machine.resets, 1U);
    out(control, 0, 0x0E);
    EXPECT_EQ(machine.resets, 1U);
    EXPECT_EQ(in(control, 0), 0x0E);
}

TEST(SystemControlA, FastResetAndA20) {
    FakeMachineControl machine;
    devices::SystemControlA control(machine);
    EXPECT_EQ(in(control, 0), 0x02);
    out(control, 0, 0xFE);
    EXPECT_EQ(machine.resets, 0U);
    EXPECT_EQ(in(control, 0), 0x02);
    out(control, 0, 0x03);
    EXPECT_EQ(machine.resets, 1U);
}

TEST(KeyboardReset, PulsesAndIsNotFitted) {
    FakeMachineControl machine;
    devices::KeyboardReset keyboard(machine);
    EXPECT_EQ(in(keyboard, 0), 0xFF);
    for (unsigned command : {0x20U, 0xAAU, 0xD1U, 0xFFU}) out(keyboard, 0, static_cast<uint8_t>(command));
    EXPECT_EQ(machine.resets, 0U);
    out(keyboard, 0, 0xFE);
    EXPECT_EQ(machine.resets, 1U);
}

// The steps of OVMF's CPU count (edk2 OvmfPkg PlatformMaxCpuCountInitialization).
TEST(CpuHotplug, FirmwareCountsTheCpus) {
    devices::CpuHotplug hotplug(3);
    out<uint32_t>(hotplug, 0, 0);
    out<uint32_t>(hotplug, 0, 0);
    out<uint8_t>(hotplug, 5, 0);
    EXPECT_EQ(in<uint32_t>(hotplug, 0), 0U); // the modern interface
    unsigned present = 0;
    unsigned possible = 0;
    uint32_t selected = 0;
    out<uint32_t>(hotplug, 0, 0);
    do {
        if (in(hotplug, 4) & 1) ++present;
        out<uint32_t>(hotplug, 0, ++possible);
        selected = in<uint32_t>(hotplug, 8);
        ASSERT_TRUE(selected == possible || selected == 0);
    } while (selected > 0);
    EXPECT_EQ(present, 3U);
    EXPECT_EQ(possible, 3U);
    out<uint32_t>(hotplug, 0, 2);
    out<uint8_t>(hotplug, 5, 3);
    EXPECT_EQ(in<uint32_t>(hotplug, 8), 2U); // its APIC ID
    out<uint32_t>(hotplug, 0, ~0U);
    EXPECT_EQ(in(hotplug, 4), 0);
}

} // namespace
} // namespace coffer::tests
