#include "devices/tpm/tpm_thread.hpp"

#include <gtest/gtest.h>

#include "tests/support/fake_tpm.hpp"
#include "tests/support/fakes.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

class TpmThreadTest : public testing::Test {
protected:
    bool wait_done() {
        return poll_until([&] { return thread.done(); });
    }

    ManualScheduler scheduler;
    FakeTpm tpm;
    unsigned notified = 0;
    TpmThread thread{tpm, scheduler, 256, [this] { ++notified; }};
    ByteVector command = commands::get_random(4);
};

TEST_F(TpmThreadTest, RunsACommand) {
    thread.submit(Locality::Two, command);
    ASSERT_TRUE(wait_done());
    EXPECT_TRUE(succeeded(thread.response()));
    EXPECT_EQ(thread.response().size(), 10 + command.size());
    EXPECT_EQ(tpm.locality, Locality::Two);
    ASSERT_TRUE(thread.drain(k_ns_per_s));
    EXPECT_EQ(notified, 0U); // under the device lock only
    scheduler.run_tasks();
    EXPECT_EQ(notified, 1U);
}

TEST_F(TpmThreadTest, WaitEndsWithTheCommandOrTheLimit) {
    tpm.hold();
    thread.submit(Locality::Zero, command);
    auto start = monotonic_now();
    thread.wait_done(k_ns_per_ms);
    EXPECT_GE(monotonic_now() - start, k_ns_per_ms * 9 / 10);
    EXPECT_FALSE(thread.done());
    tpm.wait_running();
    std::thread releaser([&] { tpm.release(); });
    thread.wait_done(60 * k_ns_per_s);
    releaser.join();
    EXPECT_TRUE(thread.done());
}

TEST_F(TpmThreadTest, CancelIsRepeatedUntilItIsHeard) {
    tpm.hold();
    tpm.lose_cancels = 3;
    thread.submit(Locality::Zero, command);
    tpm.wait_running();
    thread.cancel();
    EXPECT_FALSE(thread.done());
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return thread.done();
    }));
    EXPECT_EQ(response_code(thread.response()), rc(TpmResponseCode::Canceled));
    EXPECT_GE(tpm.cancels, 4U);
    // And not a moment longer: the next command is not the one to be cancelled.
    tpm.release();
    thread.submit(Locality::Zero, command);
    scheduler.advance(10 * k_ns_per_ms);
    ASSERT_TRUE(wait_done());
    EXPECT_TRUE(succeeded(thread.response()));
}

TEST_F(TpmThreadTest, CancelBeforeTheCommandBeginsIsNotLost) {
    tpm.hold();
    thread.submit(Locality::Zero, command);
    thread.cancel();
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return thread.done();
    }));
    EXPECT_EQ(response_code(thread.response()), rc(TpmResponseCode::Canceled));
}

TEST_F(TpmThreadTest, ResponseWaitsForTheStore) {
    thread.submit(Locality::Zero, command);
    ASSERT_TRUE(wait_done());
    tpm.hold();
    thread.submit(Locality::Zero, command);
    tpm.wait_running();
    tpm.store_fails = true;
    tpm.release();
    ASSERT_TRUE(poll_until([&] { return tpm.executed == 2; }));
    thread.wait_done(30 * k_ns_per_ms);
    EXPECT_FALSE(thread.done());
    EXPECT_FALSE(thread.drain(k_ns_per_ms));
    tpm.store_fails = false;
    ASSERT_TRUE(wait_done());
    EXPECT_TRUE(succeeded(thread.response()));
    EXPECT_EQ(tpm.executed, 2U);
}

TEST_F(TpmThreadTest, NewCommandsAreNotStartedWhileTheStoreRefuses) {
    tpm.hold();
    thread.submit(Locality::Zero, command);
    tpm.wait_running();
    tpm.store_fails = true;
    tpm.release();
    ASSERT_TRUE(poll_until([&] { return tpm.executed == 1; }));
    thread.abandon();
    for (int i = 0; i < 3; ++i) {
        thread.submit(Locality::Zero, command);
        ASSERT_TRUE(wait_done());
        EXPECT_EQ(response_code(thread.response()), rc(TpmResponseCode::Retry));
    }
    EXPECT_EQ(tpm.executed, 1U);
    tpm.store_fails = false;
    thread.submit(Locality::Zero, command);
    ASSERT_TRUE(wait_done());
    EXPECT_TRUE(succeeded(thread.response()));
}

TEST_F(TpmThreadTest, AbandonedCommandIsCancelledAndItsResponseDropped) {
    tpm.hold();
    thread.submit(Locality::Zero, command);
    tpm.wait_running();
    thread.abandon();
    tpm.release();
    ByteVector other = commands::get_random(32);
    thread.submit(Locality::One, other);
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return thread.done();
    }));
    EXPECT_TRUE(std::equal(other.begin(), other.end(), thread.response().begin() + 10));
    scheduler.run_tasks();
    EXPECT_EQ(notified, 1U);
}

TEST_F(TpmThreadTest, PowerCycleComesBetweenCommands) {
    tpm.hold();
    thread.submit(Locality::Zero, command);
    tpm.wait_running();
    thread.power_cycle();
    thread.submit(Locality::Zero, command);
    tpm.release();
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return thread.done();
    }));
    EXPECT_EQ(tpm.power_cycles, 1U);
    EXPECT_TRUE(succeeded(thread.response()));
}

TEST(TpmThread, EndsWhileACommandRuns) {
    ManualScheduler scheduler;
    FakeTpm tpm;
    tpm.hold();
    tpm.lose_cancels = 2;
    unsigned notified = 0;
    {
        TpmThread thread(tpm, scheduler, 64, [&] { ++notified; });
        thread.submit(Locality::Zero, commands::startup());
        tpm.wait_running();
    }
    scheduler.run_tasks();
    EXPECT_EQ(notified, 0U);
    EXPECT_GE(tpm.cancels, 3U);
}

TEST(TpmThread, TaskPostedBeforeItsEndIsHarmless) {
    ManualScheduler scheduler;
    FakeTpm tpm;
    unsigned notified = 0;
    {
        TpmThread thread(tpm, scheduler, 64, [&] { ++notified; });
        thread.submit(Locality::Zero, commands::startup());
        ASSERT_TRUE(poll_until([&] { return thread.done(); }));
        ASSERT_TRUE(thread.drain(k_ns_per_s));
    }
    scheduler.run_tasks();
    EXPECT_EQ(notified, 0U);
}

} // namespace
} // namespace coffer::tests
