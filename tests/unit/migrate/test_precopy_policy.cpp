// Guests of all kinds on paper: what the policy makes of them.
#include <gtest/gtest.h>

#include "vmm/migrate/precopy_policy.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_page_bytes = 4112;

// A guest that writes `dirty_rate` distinct pages a second, at most `working_set`, over a path of `rate` bytes a
// second.
struct Simulation {
    double rate = 1e9;
    double dirty_rate = 0;
    uint64_t working_set = 0;
    uint64_t ram = 262144;
    PrecopyGoals goals = {};

    PrecopyDecision run() {
        uint64_t to_send = ram;
        unsigned throttle = 0;
        for (;;) {
            auto decision = decide_precopy(goals, rounds);
            if (decision.next != PrecopyNext::Round) return decision;
            EXPECT_LE(rounds.size(), goals.max_rounds);
            EXPECT_GE(decision.throttle, throttle) << "the guest is never let loose again";
            throttle = decision.throttle;
            RoundReport report;
            report.round = static_cast<uint32_t>(rounds.size() + 1);
            report.pages = to_send;
            report.bytes = to_send * k_page_bytes;
            double const seconds = static_cast<double>(report.bytes) / rate + 0.001;
            report.duration = static_cast<Nanoseconds>(seconds * 1e9);
            double const written = dirty_rate * seconds * (100 - throttle) / 100;
            report.remaining = std::min<uint64_t>(working_set, static_cast<uint64_t>(written));
            to_send = report.remaining;
            rounds.push_back({report, throttle});
        }
    }
    std::vector<PrecopyRound> rounds{};
};

TEST(PrecopyPolicy, IdleGuestNeedsOneRound) {
    Simulation idle{.dirty_rate = 100, .working_set = 1000};
    auto end = idle.run();
    EXPECT_EQ(end.next, PrecopyNext::SwitchOver);
    EXPECT_EQ(idle.rounds.size(), 1U);
    EXPECT_LE(end.expected_downtime, idle.goals.downtime);
    EXPECT_EQ(end.throttle, 0U);
}

TEST(PrecopyPolicy, BusyGuestConvergesByRounds) {
    Simulation busy{.dirty_rate = 60'000, .working_set = 200'000};
    auto end = busy.run();
    EXPECT_EQ(end.next, PrecopyNext::SwitchOver);
    EXPECT_GT(busy.rounds.size(), 1U);
    EXPECT_LE(end.expected_downtime, busy.goals.downtime);
    EXPECT_EQ(end.throttle, 0U);
}

// Writes faster than memory is sent: only holding it back helps.
TEST(PrecopyPolicy, GuestIsHeldBackWhereItDoesNotConverge) {
    Simulation wild{.dirty_rate = 400'000, .working_set = 200'000};
    auto end = wild.run();
    EXPECT_EQ(end.next, PrecopyNext::SwitchOver);
    EXPECT_GE(end.throttle, 20U);
    EXPECT_LE(end.throttle, wild.goals.max_throttle);
    EXPECT_LE(end.expected_downtime, wild.goals.downtime_limit);
}

TEST(PrecopyPolicy, WithoutThrottlingTheLimitDecides) {
    Simulation wild{.rate = 1e8, .dirty_rate = 400'000, .working_set = 200'000, .goals = {.max_throttle = 0}};
    auto end = wild.run();
    EXPECT_EQ(end.next, PrecopyNext::GiveUp); // 8 seconds
    EXPECT_GT(end.expected_downtime, wild.goals.downtime_limit);

    Simulation bearable{.rate = 1e9, .dirty_rate = 4'000'000, .working_set = 200'000, .goals = {.max_throttle = 0}};
    end = bearable.run();
    EXPECT_EQ(end.next, PrecopyNext::SwitchOver);
    EXPECT_GT(end.expected_downtime, bearable.goals.downtime);
}

TEST(PrecopyPolicy, RoundsAreLimited) {
    // Always a little progress.
    std::vector<PrecopyRound> rounds;
    PrecopyGoals const goals{.downtime = k_ns_per_ms, .downtime_limit = k_ns_per_ms, .max_rounds = 10};
    uint64_t remaining = 1'000'000;
    PrecopyDecision decision;
    while ((decision = decide_precopy(goals, rounds)).next == PrecopyNext::Round) {
        RoundReport report{.pages = remaining, .bytes = remaining * k_page_bytes, .duration = k_ns_per_s};
        remaining = remaining * 2 / 3;
        report.remaining = remaining;
        rounds.push_back({report, decision.throttle});
        ASSERT_LE(rounds.size(), 10U);
    }
    EXPECT_EQ(rounds.size(), 10U);
    EXPECT_EQ(decision.next, PrecopyNext::GiveUp);
}

// What is left of the disks is sent in the same pause, over the same path.
TEST(PrecopyPolicy, DisksTakeTimeToo) {
    std::vector<PrecopyRound> rounds;
    auto add = [&](uint64_t disk_bytes) {
        RoundReport report{.pages = 262144, .bytes = 262144 * k_page_bytes, .remaining = 10, .duration = k_ns_per_s};
        rounds.push_back({report, rounds.empty() ? 0 : rounds.back().throttle, disk_bytes});
        auto decision = decide_precopy({}, rounds);
        rounds.back().throttle = decision.throttle;
        return decision;
    };
    EXPECT_EQ(add(0).next, PrecopyNext::SwitchOver);
    rounds.clear();
    auto decision = add(uint64_t{512} << 20);
    EXPECT_EQ(decision.next, PrecopyNext::Round);
    EXPECT_NEAR(static_cast<double>(decision.expected_downtime), 0.5e9, 0.01e9);
    EXPECT_EQ(add(uint64_t{16} << 20).next, PrecopyNext::SwitchOver);
    // A guest that writes them all the while is held back.
    rounds.clear();
    for (int i = 0; i < 3; ++i) decision = add(uint64_t{512} << 20);
    EXPECT_EQ(decision.next, PrecopyNext::Round);
    EXPECT_GT(decision.throttle, 0U);
}

TEST(PrecopyPolicy, NumbersAtTheirEnds) {
    // Nothing was measured: no rate, no time. The estimate is finite, and nobody divides by zero.
    PrecopyRound empty{};
    EXPECT_EQ(decide_precopy({}, std::span(&empty, 1)).next, PrecopyNext::SwitchOver);
    PrecopyRound odd{.report = {.remaining = uint64_t{1} << 50}};
    auto decision = decide_precopy({}, std::span(&odd, 1));
    EXPECT_EQ(decision.next, PrecopyNext::Round);
    EXPECT_GT(decision.expected_downtime, 0);
}

} // namespace
} // namespace coffer::vmm::tests
