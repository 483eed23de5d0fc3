#include "devices/chipset/hpet.hpp"

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

constexpr uint64_t k_config0 = 0x100, k_comparator0 = 0x108, k_config1 = 0x120, k_comparator1 = 0x128,
                   k_config2 = 0x140, k_comparator2 = 0x148;

struct HpetTest : testing::Test {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    std::vector<bool> legacy;
    devices::Hpet hpet{scheduler, irqs, [this](bool on) { legacy.push_back(on); }};

    HpetTest() { hpet.reset(devices::ResetKind::Cold); }
    void enable(uint32_t bits = 1) { store(hpet, 0x10, bits); }
};

TEST_F(HpetTest, CapabilitiesMatchTheAcpiTable) {
    EXPECT_EQ(load(hpet, 0), 0x8086'A201U);
    EXPECT_EQ(load(hpet, 4), 10'000'000U); // femtoseconds
    EXPECT_EQ(load<uint64_t>(hpet, 0), 0x0098'9680'8086'A201U);
    EXPECT_EQ(load(hpet, k_config0) & 0x30, 0x30U);
}

TEST_F(HpetTest, CounterRunsWhileEnabled) {
    scheduler.advance(k_ns_per_ms);
    EXPECT_EQ(load<uint64_t>(hpet, 0xF0), 0U);
    enable();
    scheduler.advance(k_ns_per_ms);
    EXPECT_EQ(load<uint64_t>(hpet, 0xF0), 100'000U);
    store(hpet, 0x10, 0);
    scheduler.advance(k_ns_per_ms);
    EXPECT_EQ(load<uint64_t>(hpet, 0xF0), 100'000U);
    store<uint64_t>(hpet, 0xF0, 0x1'FFFF'FFFF);
    EXPECT_EQ(load(hpet, 0xF0), 0xFFFF'FFFFU);
    EXPECT_EQ(load(hpet, 0xF4), 1U);
    enable();
    scheduler.advance(10);
    EXPECT_EQ(load<uint64_t>(hpet, 0xF0), 0x2'0000'0000U);
}

TEST_F(HpetTest, OneShotFiresOnce) {
    store(hpet, k_config2, 5 << 9 | 0x04); // edge, GSI 5
    store<uint64_t>(hpet, k_comparator2, 1000);
    enable();
    scheduler.advance(9'990);
    EXPECT_EQ(irqs.rises[5], 0U);
    scheduler.advance(20);
    EXPECT_EQ(irqs.rises[5], 1U);
    EXPECT_FALSE(irqs.levels[5]);
    EXPECT_EQ(load(hpet, 0x20), 0U);
    scheduler.advance(k_ns_per_s);
    EXPECT_EQ(irqs.rises[5], 1U);
}

TEST_F(HpetTest, LevelStaysUntilCleared) {
    store(hpet, k_config1, 12 << 9 | 0x06);
    store<uint64_t>(hpet, k_comparator1, 100);
    enable();
    scheduler.advance(2'000);
    EXPECT_TRUE(irqs.levels[12]);
    EXPECT_EQ(load(hpet, 0x20), 2U);
    store(hpet, 0x20, 1); // another timer's bit
    EXPECT_TRUE(irqs.levels[12]);
    store(hpet, 0x20, 2);
    EXPECT_FALSE(irqs.levels[12]);
}

TEST_F(HpetTest, LegacyReplacementAsLinuxSetsItUp) {
    // Periodic, 1 ms, 32 bits: value set, then comparator, then period.
    store(hpet, 0x10, 0);
    store(hpet, k_config0, 0x14C);
    store(hpet, k_comparator0, 100'000);
    store(hpet, k_comparator0, 100'000);
    enable(3);
    EXPECT_EQ(legacy, std::vector<bool>{true});
    scheduler.advance(100 * k_ns_per_ms + 100);
    EXPECT_EQ(irqs.rises[0], 100U);
    EXPECT_EQ(load(hpet, k_comparator0), 10'100'000U);
    enable(1);
    EXPECT_EQ(legacy, (std::vector<bool>{true, false}));
    scheduler.advance(10 * k_ns_per_ms);
    EXPECT_EQ(irqs.rises[0], 110U); // its own route is GSI 0, too
}

TEST_F(HpetTest, SecondLegacyTimerIsIrq8) {
    store(hpet, k_config1, 0x04);
    store<uint64_t>(hpet, k_comparator1, 100);
    enable(3);
    scheduler.advance(2'000);
    EXPECT_EQ(irqs.rises[8], 1U);
}

TEST_F(HpetTest, NarrowComparatorMatchesEachWrap) {
    store(hpet, k_config2, 5 << 9 | 0x104);
    store(hpet, k_comparator2, 50);
    store<uint64_t>(hpet, 0xF0, 0x7'FFFF'FF00);
    enable();
    scheduler.advance(4'000);
    EXPECT_EQ(irqs.rises[5], 1U);
    scheduler.advance(Nanoseconds{10} << 32);
    EXPECT_EQ(irqs.rises[5], 2U);
}

TEST_F(HpetTest, ImpossibleRouteDoesNotStick) {
    store(hpet, k_config0, 20 << 9 | 0x04);
    EXPECT_EQ(load(hpet, k_config0) >> 9 & 0x1F, 0U);
    store(hpet, k_config0, 12 << 9 | 0x04);
    EXPECT_EQ(load(hpet, k_config0) >> 9 & 0x1F, 12U);
}

TEST_F(HpetTest, TinyPeriodDoesNotStorm) {
    store(hpet, k_config0, 5 << 9 | 0x4C);
    store<uint64_t>(hpet, k_comparator0, 1);
    enable();
    scheduler.advance(k_ns_per_s / 10);
    EXPECT_LE(irqs.rises[5], 2'001U);
    EXPECT_GE(irqs.rises[5], 1'000U);
}

} // namespace
} // namespace coffer::tests
