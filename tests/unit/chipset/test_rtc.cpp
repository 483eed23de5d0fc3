#include "devices/chipset/rtc.hpp"

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

using namespace devices::rtc;

constexpr int64_t k_2026_11_20_09_45_58 = 1'795'167'958;

struct RtcTest : testing::Test {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    int64_t host = k_2026_11_20_09_45_58;
    devices::Rtc rtc{{.low_ram = 0x8000'0000,
                      .high_ram = 0x1'0000'0000,
                      .cpus = 4,
                      .utc = [this] { return host + scheduler.now() / k_ns_per_s; }},
                     scheduler,
                     devices::IrqLine(irqs, 8)};

    uint8_t get(uint8_t index) {
        out(rtc, 0, index);
        return in(rtc, 1);
    }
    void put(uint8_t index, uint8_t value) {
        out(rtc, 0, index);
        out(rtc, 1, value);
    }
    std::array<unsigned, 7> date() {
        return {get(CENTURY), get(YEAR), get(MONTH), get(DAY_OF_MONTH), get(HOURS), get(MINUTES), get(SECONDS)};
    }
};

TEST_F(RtcTest, ShowsTheHostsUtcInBcd) {
    EXPECT_EQ(date(), (std::array<unsigned, 7>{0x20, 0x26, 0x11, 0x20, 0x09, 0x45, 0x58}));
    EXPECT_EQ(get(DAY_OF_WEEK), 6); // Friday
    EXPECT_EQ(get(REGISTER_D), 0x80);
    scheduler.advance(3 * k_ns_per_s);
    EXPECT_EQ(date(), (std::array<unsigned, 7>{0x20, 0x26, 0x11, 0x20, 0x09, 0x46, 0x01}));
}

TEST_F(RtcTest, BinaryAndTwelveHours) {
    put(REGISTER_B, B_BINARY);
    host += 6 * 3600;
    rtc.resynchronise();
    EXPECT_EQ(date(), (std::array<unsigned, 7>{20, 26, 11, 20, 0x83, 45, 58})); // 3 pm
    host += 9 * 3600;
    rtc.resynchronise();
    EXPECT_EQ(get(HOURS), 12); // midnight
    EXPECT_EQ(get(DAY_OF_MONTH), 21);
}

TEST_F(RtcTest, SettingTheClockAsLinuxDoes) {
    put(REGISTER_B, B_SET | B_24H);
    put(REGISTER_A, 0x76);
    auto bytes = std::to_array<std::pair<uint8_t, uint8_t>>({{YEAR, 0x00},
                                                             {CENTURY, 0x20},
                                                             {MONTH, 0x02},
                                                             {DAY_OF_MONTH, 0x28},
                                                             {HOURS, 0x23},
                                                             {MINUTES, 0x59},
                                                             {SECONDS, 0x59}});
    for (auto [index, value] : bytes) put(index, value);
    scheduler.advance(10 * k_ns_per_s);
    EXPECT_EQ(get(SECONDS), 0x59); // stands still
    put(REGISTER_B, B_24H);
    put(REGISTER_A, 0x26);
    scheduler.advance(k_ns_per_s);
    EXPECT_EQ(date(), (std::array<unsigned, 7>{0x20, 0x00, 0x02, 0x29, 0x00, 0x00, 0x00})); // a leap year
    int64_t offset = rtc.utc_offset();
    EXPECT_LT(offset, 0);
    host += 86'400; // the VM was stopped for a day
    rtc.resynchronise();
    EXPECT_EQ(date(), (std::array<unsigned, 7>{0x20, 0x00, 0x03, 0x01, 0x00, 0x00, 0x00}));
    EXPECT_EQ(rtc.utc_offset(), offset);
}

TEST_F(RtcTest, UpdateInProgressComesBeforeTheUpdate) {
    scheduler.advance(k_ns_per_s - 300 * k_ns_per_us);
    EXPECT_EQ(get(REGISTER_A), 0x26);
    scheduler.advance(100 * k_ns_per_us);
    EXPECT_EQ(get(REGISTER_A), 0xA6);
    scheduler.advance(200 * k_ns_per_us);
    EXPECT_EQ(get(REGISTER_A), 0x26);
}

TEST_F(RtcTest, UpdateInterruptIsALevelUntilRead) {
    put(REGISTER_B, B_24H | B_UIE);
    scheduler.advance(k_ns_per_s);
    EXPECT_TRUE(irqs.levels[8]);
    EXPECT_EQ(get(REGISTER_C) & 0xB0, 0x90);
    EXPECT_FALSE(irqs.levels[8]);
    scheduler.advance(3 * k_ns_per_s); // not read: pending once
    EXPECT_EQ(irqs.rises[8], 2U);
}

TEST_F(RtcTest, PeriodicInterrupt) {
    put(REGISTER_B, B_24H | B_PIE); // 1024 Hz
    unsigned count = 0;
    for (int i = 0; i < 10'000; ++i) {
        scheduler.advance(100 * k_ns_per_us);
        if (irqs.levels[8] && (get(REGISTER_C) & C_PF)) ++count;
    }
    EXPECT_NEAR(count, 1024, 2);
    put(REGISTER_A, 0x20); // rate none
    get(REGISTER_C);
    scheduler.advance(k_ns_per_s);
    EXPECT_FALSE(irqs.levels[8]);
}

TEST_F(RtcTest, AlarmMatchesAndWildcards) {
    put(HOURS_ALARM, 0x09);
    put(MINUTES_ALARM, 0x47);
    put(SECONDS_ALARM, 0x30);
    put(REGISTER_B, B_24H | B_AIE);
    scheduler.advance(91 * k_ns_per_s);
    EXPECT_FALSE(irqs.levels[8]);
    scheduler.advance(k_ns_per_s);
    EXPECT_TRUE(irqs.levels[8]);
    EXPECT_TRUE(get(REGISTER_C) & C_AF);
    scheduler.advance(k_ns_per_s * 3600);
    EXPECT_FALSE(irqs.levels[8]);
    put(HOURS_ALARM, 0xFF); // each hour
    get(REGISTER_C);
    scheduler.advance(k_ns_per_s * 3600);
    EXPECT_TRUE(irqs.levels[8]);
    get(REGISTER_C);
    put(HOURS_ALARM, 0x77); // never
    scheduler.advance(k_ns_per_s * 86'400);
    EXPECT_FALSE(irqs.levels[8]);
}

TEST_F(RtcTest, FlagsAreThereForPollersToo) {
    scheduler.advance(k_ns_per_s);
    EXPECT_EQ(get(REGISTER_C), C_PF | C_UF | (get(SECONDS_ALARM) == 0x59 ? C_AF : 0));
    EXPECT_EQ(get(REGISTER_C), 0);
    EXPECT_FALSE(irqs.levels[8]);
}

TEST_F(RtcTest, MemorySizes) {
    EXPECT_EQ(get(0x15) | get(0x16) << 8, 640);
    EXPECT_EQ(get(0x17) | get(0x18) << 8, 0xFFFF);
    EXPECT_EQ(get(0x34) | get(0x35) << 8, 0x7F00); // 2 GiB less 16 MiB
    EXPECT_EQ(get(0x5B) | get(0x5C) << 8 | get(0x5D) << 16, 0x1'0000);
    EXPECT_EQ(get(0x5F), 3);
}

TEST_F(RtcTest, MemorySurvivesAWarmResetAlone) {
    put(SHUTDOWN_STATUS, 0x0A);
    out(rtc, 2, 0x12);
    out(rtc, 3, 0x34);
    put(REGISTER_B, B_24H | B_UIE);
    rtc.reset(devices::ResetKind::Warm);
    EXPECT_EQ(get(SHUTDOWN_STATUS), 0x0A);
    EXPECT_EQ(get(REGISTER_B), B_24H);
    out(rtc, 2, 0x12);
    EXPECT_EQ(in(rtc, 3), 0x34);
    rtc.reset(devices::ResetKind::Cold);
    EXPECT_EQ(get(SHUTDOWN_STATUS), 0x00);
}

} // namespace
} // namespace coffer::tests
