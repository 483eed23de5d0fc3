#include "devices/chipset/pm_block.hpp"

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

struct PmTest : testing::Test {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    FakeMachineControl machine;
    devices::PmBlock pm{scheduler, devices::IrqLine(irqs, 9), machine};
};

TEST_F(PmTest, TimerRunsAtItsRateAndWraps) {
    scheduler.advance(k_ns_per_s);
    EXPECT_EQ(in<uint32_t>(pm, 8), 3'579'545U);
    scheduler.advance(4 * k_ns_per_s);
    EXPECT_EQ(in<uint32_t>(pm, 8), 5 * 3'579'545U - 0x100'0000U);
    devices::PmBlock wide(scheduler, {}, machine, devices::PmTimerWidth::Bits32);
    scheduler.advance(5 * k_ns_per_s);
    EXPECT_EQ(in<uint32_t>(wide, 8), 5 * 3'579'545U);
}

TEST_F(PmTest, TimerOverflowRaisesSci) {
    scheduler.advance(2'344 * k_ns_per_ms);
    EXPECT_EQ(in<uint16_t>(pm, 0), 1); // shown without being enabled
    EXPECT_FALSE(irqs.levels[9]);
    out<uint16_t>(pm, 0, 1);
    EXPECT_EQ(in<uint16_t>(pm, 0), 0);
    out<uint16_t>(pm, 2, 1);
    scheduler.advance(2'342 * k_ns_per_ms);
    EXPECT_FALSE(irqs.levels[9]);
    scheduler.advance(10 * k_ns_per_ms);
    EXPECT_TRUE(irqs.levels[9]);
    out<uint16_t>(pm, 0, 1);
    EXPECT_FALSE(irqs.levels[9]);
}

TEST_F(PmTest, PowerButton) {
    pm.press_power_button();
    EXPECT_FALSE(irqs.levels[9]);
    out<uint16_t>(pm, 2, 0x0100);
    EXPECT_TRUE(irqs.levels[9]);
    EXPECT_EQ(in<uint16_t>(pm, 0), 0x0100);
    EXPECT_EQ(in<uint32_t>(pm, 0), 0x0100'0100U);
    out<uint16_t>(pm, 0, 0x0001); // another bit
    EXPECT_TRUE(irqs.levels[9]);
    out<uint8_t>(pm, 1, 0x01);
    EXPECT_FALSE(irqs.levels[9]);
    EXPECT_EQ(in<uint16_t>(pm, 2), 0x0100); // a byte's write leaves its neighbours alone
}

TEST_F(PmTest, SoftOff) {
    EXPECT_EQ(in<uint16_t>(pm, 4), 1); // SCI_EN
    out<uint16_t>(pm, 4, 0);
    EXPECT_EQ(in<uint16_t>(pm, 4), 1);
    out<uint16_t>(pm, 4, 1 << 10 | 1 << 13); // S3: there is none
    EXPECT_EQ(machine.power_offs, 0U);
    out<uint16_t>(pm, 4, 0);
    EXPECT_EQ(machine.power_offs, 0U);
    out<uint16_t>(pm, 4, 1 << 13);
    EXPECT_EQ(machine.power_offs, 1U);
}

TEST_F(PmTest, GpeAndApmKeepWhatIsWritten) {
    out<uint8_t>(pm, 0x2B, 0xA5);
    EXPECT_EQ(in<uint32_t>(pm, 0x28), 0xA500'0000U);
    EXPECT_EQ(in<uint32_t>(pm, 0x20), 0U);
    out(pm.apm_ports(), 1, 0x42);
    EXPECT_EQ(in(pm.apm_ports(), 1), 0x42);
    EXPECT_EQ(machine.resets + machine.power_offs, 0U);
}

} // namespace
} // namespace coffer::tests
