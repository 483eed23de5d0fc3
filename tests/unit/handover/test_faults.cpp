// Migrations that are stopped: source, destination or connection, at each message and at each system call that writes.
// Afterwards never two hosts run the VM, and once the hand-over is settled exactly one does, with everything that the
// guest was told is stored.
#include "tests/support/syscall_tracer.hpp"
#include "tests/unit/handover/migration_world.hpp"

namespace coffer::vmm::migrate::tests {
namespace {

using coffer::tests::Fault;
using coffer::tests::PlannedFault;
using coffer::tests::run_traced;

// Points of all tests here; the last one counts them.
int g_points = 0;

void expect_settles(World& world) {
    EXPECT_LE(world.owners(), 1) << "two hosts would run it";
    for (int tries = 0; tries < 2; ++tries)
        if (auto settled = world.resolve()) {
            EXPECT_TRUE(*settled) << settled->error().message();
        }
    EXPECT_EQ(world.owners(), 1);
    world.expect_one_owner_with_everything();
}

// One migration with a fault at a message; gives how many messages the faulty side had.
int with_message_fault(bool at_source, Plan plan, bool with_disk = false) {
    World world(with_disk);
    World::Wire wire;
    Told idle; // counts what nobody asks for
    auto const destination = World::spawn([&] {
        wire.source.reset();
        return world.run_destination(std::move(wire.destination), at_source ? Plan{} : plan,
                                     at_source ? idle : world.told());
    });
    auto const source = World::spawn([&] {
        wire.destination.reset();
        return world.run_source(std::move(wire.source), at_source ? plan : Plan{}, at_source ? world.told() : idle);
    });
    wire.source.reset();
    wire.destination.reset();
    World::wait(source);
    World::wait(destination);
    int const messages = world.told().messages;
    expect_settles(world);
    // What runs there has all of its disk; what runs here has the one that it had.
    if (with_disk && world.open_there()) {
        EXPECT_TRUE(*read_file(world.disk(), 1 << 23) == *read_file(world.moved_disk(), 1 << 23));
    }
    return messages;
}

// The same with a fault at a writing system call; gives how many there were.
unsigned with_write_fault(bool at_source, std::vector<PlannedFault> const& plan) {
    World world;
    World::Wire wire;
    Told idle;
    auto source = [&] {
        wire.destination.reset();
        return world.run_source(std::move(wire.source), {}, idle);
    };
    auto destination = [&] {
        wire.source.reset();
        return world.run_destination(std::move(wire.destination), {}, idle);
    };
    auto const other = at_source ? World::spawn(destination) : World::spawn(source);
    (at_source ? wire.destination : wire.source).reset();
    auto const run = run_traced([&] { return at_source ? source() : destination(); }, plan);
    wire.source.reset();
    wire.destination.reset();
    World::wait(other);
    expect_settles(world);
    return run.writes;
}

class MessageFaults : public testing::TestWithParam<std::tuple<bool, MessageFault>> {};

TEST_P(MessageFaults, LeaveOneOwner) {
    auto const [at_source, fault] = GetParam();
    int const all = with_message_fault(at_source, {});
    ASSERT_GT(all, 10);
    for (int at = 0; at < all; ++at) {
        SCOPED_TRACE(fmt::format("message {} of {}", at, all));
        with_message_fault(at_source, {fault, at});
        ++g_points;
        if (HasFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Both, MessageFaults,
                         testing::Combine(testing::Bool(), testing::Values(MessageFault::Kill, MessageFault::Cut)),
                         [](auto const& which) {
                             return fmt::format("{}{}", std::get<0>(which.param) ? "Source" : "Destination",
                                                std::get<1>(which.param) == MessageFault::Kill ? "Killed" : "Cut");
                         });

// The same while a disk is copied that is written meanwhile.
TEST(DiskFaults, LeaveOneOwnerWithAWholeDisk) {
    for (bool at_source : {false, true}) {
        auto const fault = at_source ? MessageFault::Cut : MessageFault::Kill;
        int const all = with_message_fault(at_source, {}, true);
        ASSERT_GT(all, 20);
        for (int at = 0; at < all; ++at) {
            SCOPED_TRACE(fmt::format("message {} of {}", at, all));
            with_message_fault(at_source, {fault, at}, true);
            ++g_points;
            if (HasFailure()) return;
        }
    }
}

class WriteFaults : public testing::TestWithParam<std::tuple<bool, Fault>> {};

TEST_P(WriteFaults, LeaveOneOwner) {
    auto const [at_source, fault] = GetParam();
    unsigned const all = with_write_fault(at_source, {});
    ASSERT_GT(all, 20U);
    ASSERT_LT(all, 400U);
    for (unsigned at = 0; at < all; ++at) {
        SCOPED_TRACE(fmt::format("write {} of {}", at, all));
        with_write_fault(at_source, {{at, fault}});
        ++g_points;
        if (HasFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Both, WriteFaults, testing::Combine(testing::Bool(), testing::Values(Fault::Kill, Fault::Eio)),
                         [](auto const& which) {
                             return fmt::format("{}{}", std::get<0>(which.param) ? "Source" : "Destination",
                                                std::get<1>(which.param) == Fault::Kill ? "Killed" : "Eio");
                         });

// Stopped while a lost confirmation is settled, on either side, and settled again.
class SettleFaults : public testing::TestWithParam<std::tuple<bool, bool>> {};

TEST_P(SettleFaults, LeaveOneOwner) {
    auto const [started, at_source] = GetParam();
    // The connection is cut when the source has sent Go, or is about to: then the destination has, or has not, started.
    int const all = with_message_fault(true, {});
    int const go = all - 3; // Go, Started, Settled are the last
    for (unsigned at = 0;; ++at) {
        SCOPED_TRACE(fmt::format("write {}", at));
        World world;
        {
            World::Wire wire;
            Told idle;
            auto const destination = World::spawn([&] {
                wire.source.reset();
                return world.run_destination(std::move(wire.destination), {}, idle);
            });
            auto const source = World::spawn([&] {
                wire.destination.reset();
                return world.run_source(std::move(wire.source), {MessageFault::Kill, started ? go + 1 : go},
                                        world.told());
            });
            wire.source.reset();
            wire.destination.reset();
            World::wait(source);
            World::wait(destination);
        }
        ASSERT_EQ(world.told().runs_there.load(), started);
        ASSERT_TRUE(world.source().open("vm").error().code() == ErrorCode::Busy);
        World::Wire wire;
        auto asked = [&] {
            wire.destination.reset();
            HomeLocation const location = world.source().location("vm");
            auto const record = read_host_record(location.host_record());
            MigrationJournal const journal(location.root);
            auto const entry = journal.read_outgoing((*record)->migration);
            Stream stream(std::move(wire.source));
            auto settled = settle(stream, journal, **entry, {[&] { return reclaim(location, (*entry)->id); }});
            return settled ? 0 : 1;
        };
        auto answers = [&] {
            wire.source.reset();
            Told idle;
            return world.run_destination(std::move(wire.destination), {}, idle);
        };
        auto const other = at_source ? World::spawn(answers) : World::spawn(asked);
        (at_source ? wire.destination : wire.source).reset();
        auto const run = run_traced([&] { return at_source ? asked() : answers(); }, {{at, Fault::Kill}});
        wire.source.reset();
        wire.destination.reset();
        World::wait(other);
        expect_settles(world);
        if (HasFailure() || !run.killed) break;
        ++g_points;
        ASSERT_LT(at, 200U);
    }
}

INSTANTIATE_TEST_SUITE_P(Both, SettleFaults, testing::Combine(testing::Bool(), testing::Bool()), [](auto const& which) {
    return fmt::format("{}{}Killed", std::get<0>(which.param) ? "Started" : "Abandoned",
                       std::get<1>(which.param) ? "Source" : "Destination");
});

// What the tests above went through, where all of them ran.
class Count : public testing::Environment {
    void TearDown() override {
        auto const& all = *testing::UnitTest::GetInstance();
        if (all.test_to_run_count() < all.total_test_count()) return;
        fmt::print("{} injected points\n", g_points);
        EXPECT_GE(g_points, 200);
    }
};
auto* const g_count = testing::AddGlobalTestEnvironment(new Count);

} // namespace
} // namespace coffer::vmm::migrate::tests
