#include "devices/chipset/pit.hpp"

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

struct PitTest : testing::Test {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    devices::Pit pit{scheduler, devices::IrqLine(irqs, 0)};
    devices::PioDevice& ports = pit.ports();
    devices::PioDevice& port61 = pit.system_control_b();

    void load(unsigned counter, unsigned mode, uint16_t count) {
        out(ports, 3, static_cast<uint8_t>(counter << 6 | 3 << 4 | mode << 1));
        out(ports, counter, static_cast<uint8_t>(count));
        out(ports, counter, static_cast<uint8_t>(count >> 8));
    }
    uint16_t latched(unsigned counter) {
        out(ports, 3, static_cast<uint8_t>(counter << 6));
        unsigned low = in(ports, counter);
        return static_cast<uint16_t>(low | in(ports, counter) << 8);
    }
    void advance_ticks(uint64_t ticks) {
        scheduler.advance(static_cast<Nanoseconds>((ticks * 1'000'000'000 + 1'193'181) / 1'193'182));
    }
};

TEST_F(PitTest, RateGeneratorInterruptsEachPeriod) {
    load(0, 2, 11932); // 100.0 Hz
    unsigned before = irqs.rises[0];
    scheduler.advance(k_ns_per_s + k_ns_per_ms);
    EXPECT_EQ(irqs.rises[0] - before, 100U);
    load(0, 3, 0); // 65536: 18.2 Hz
    before = irqs.rises[0];
    scheduler.advance(10 * k_ns_per_s);
    EXPECT_EQ(irqs.rises[0] - before, 182U);
}

TEST_F(PitTest, TinyPeriodDoesNotStorm) {
    load(0, 2, 2);
    unsigned before = irqs.rises[0];
    scheduler.advance(10 * k_ns_per_ms);
    EXPECT_LE(irqs.rises[0] - before, 201U);
    EXPECT_GE(irqs.rises[0] - before, 100U);
}

TEST_F(PitTest, TerminalCountInterruptsOnceAndStaysHigh) {
    load(0, 0, 1000);
    EXPECT_FALSE(irqs.levels[0]);
    advance_ticks(999);
    EXPECT_FALSE(irqs.levels[0]);
    advance_ticks(2);
    EXPECT_TRUE(irqs.levels[0]);
    scheduler.advance(k_ns_per_s);
    EXPECT_EQ(irqs.rises[0], 1U);
    out(ports, 3, 0x30);
    EXPECT_FALSE(irqs.levels[0]); // the control word takes OUT low
}

TEST_F(PitTest, CountsDownAndLatches) {
    load(2, 0, 0x1234);
    out(port61, 0, 1);
    advance_ticks(0x34);
    EXPECT_EQ(latched(2), 0x1200);
    out(ports, 3, 0x80); // latch
    advance_ticks(100);
    out(ports, 3, 0x80); // ignored: not read yet
    unsigned low = in(ports, 2);
    EXPECT_EQ(low | static_cast<unsigned>(in(ports, 2)) << 8, 0x1200U);
}

TEST_F(PitTest, GateStopsAndContinuesModeZero) {
    out(port61, 0, 1);
    load(2, 0, 1000);
    advance_ticks(400);
    out(port61, 0, 0);
    advance_ticks(5000);
    EXPECT_EQ(latched(2), 600);
    EXPECT_EQ(in(port61, 0) & 0x20, 0);
    out(port61, 0, 1);
    advance_ticks(601);
    EXPECT_EQ(in(port61, 0) & 0x20, 0x20);
}

TEST_F(PitTest, OneShotIsTriggeredByTheGate) {
    load(2, 1, 500);
    EXPECT_EQ(in(port61, 0) & 0x20, 0x20);
    advance_ticks(600);
    out(port61, 0, 1);
    EXPECT_EQ(in(port61, 0) & 0x20, 0);
    advance_ticks(501);
    EXPECT_EQ(in(port61, 0) & 0x20, 0x20);
    out(port61, 0, 0);
    out(port61, 0, 1); // again
    EXPECT_EQ(in(port61, 0) & 0x20, 0);
}

TEST_F(PitTest, SquareWaveIsHighForHalf) {
    out(port61, 0, 1);
    load(2, 3, 1000);
    advance_ticks(100);
    EXPECT_EQ(in(port61, 0) & 0x20, 0x20);
    EXPECT_EQ(latched(2), 800); // by two
    advance_ticks(500);
    EXPECT_EQ(in(port61, 0) & 0x20, 0);
    EXPECT_EQ(latched(2), 800);
}

TEST_F(PitTest, StrobeIsLowForOneClock) {
    out(port61, 0, 1);
    load(2, 4, 100);
    EXPECT_EQ(in(port61, 0) & 0x20, 0x20);
    advance_ticks(100);
    EXPECT_EQ(in(port61, 0) & 0x20, 0);
    advance_ticks(1);
    EXPECT_EQ(in(port61, 0) & 0x20, 0x20);
}

TEST_F(PitTest, BcdCounts) {
    out(ports, 3, 2 << 6 | 3 << 4 | 1);
    out(port61, 0, 1);
    out(ports, 2, 0x00);
    out(ports, 2, 0x10); // 1000
    advance_ticks(1);
    EXPECT_EQ(latched(2), 0x0999);
}

TEST_F(PitTest, ReadBackGivesStatusThenCount) {
    load(0, 2, 0x4321);
    out(ports, 3, 0xC2); // status and count of counter 0
    EXPECT_EQ(in(ports, 0), 0x80 | 3 << 4 | 2 << 1);
    EXPECT_EQ(in(ports, 0), 0x21);
    EXPECT_EQ(in(ports, 0), 0x43);
    out(ports, 3, 0x34);
    out(ports, 3, 0xE2);                  // status alone
    EXPECT_EQ(in(ports, 0) & 0x40, 0x40); // null count
}

TEST_F(PitTest, RefreshBitToggles) {
    unsigned changes = 0;
    uint8_t last = in(port61, 0) & 0x10;
    for (int i = 0; i < 1000; ++i) {
        scheduler.advance(k_ns_per_us);
        uint8_t now = in(port61, 0) & 0x10;
        changes += now != last;
        last = now;
    }
    EXPECT_NEAR(changes, 66, 1);
}

TEST_F(PitTest, HpetTakesIrq0) {
    load(0, 2, 11932);
    pit.connect_irq0(false);
    EXPECT_FALSE(irqs.levels[0]);
    unsigned before = irqs.rises[0];
    scheduler.advance(k_ns_per_s);
    EXPECT_EQ(irqs.rises[0], before);
    pit.connect_irq0(true);
    scheduler.advance(k_ns_per_s);
    EXPECT_GE(irqs.rises[0] - before, 99U);
}

} // namespace
} // namespace coffer::tests
