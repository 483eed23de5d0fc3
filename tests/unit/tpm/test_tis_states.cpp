// Every state of the FIFO interface's state diagram (PC Client PTP 1.05 rev 14, 6.5.2) meets every stimulus, legal and
// not. What a driver can see says where the TPM is afterwards.
#include <gtest/gtest.h>

#include "tests/support/fake_tpm.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

constexpr uint64_t k_sts = 0x18;
constexpr uint64_t k_fifo = 0x24;
constexpr unsigned k_locality = 1; // there is one below and one above

enum class State {
    Idle,
    Ready,
    Receiving, // Command Reception, expecting more
    Received,  // Command Reception, with all of the command
    Executing,
    Complete, // Command Completion, with response to read
    ReadOut,  // Command Completion, all of it read
};
constexpr std::array k_states{State::Idle,      State::Ready,    State::Receiving, State::Received,
                              State::Executing, State::Complete, State::ReadOut};

enum class Stimulus {
    CommandReady,
    Go,
    ResponseRetry,
    WriteByte,
    ReadByte,
    ReadAll,
    Cancel,
    TwoBits,      // commandReady and tpmGo at once: undefined, and taken for nothing
    Relinquish,   // and requested again
    SeizeHigher,  // by locality 2, which then gives it back
    SeizeLower,   // by locality 0
    SeizeFour,    // by the chipset's locality, which software does not reach
    ElsewhereGo,  // tpmGo, commandReady and a byte from localities that have no access
    RequestAgain, // by the locality that has access
    WriteReadOnly,
};
constexpr std::array k_stimuli{Stimulus::CommandReady, Stimulus::Go,           Stimulus::ResponseRetry,
                               Stimulus::WriteByte,    Stimulus::ReadByte,     Stimulus::ReadAll,
                               Stimulus::Cancel,       Stimulus::TwoBits,      Stimulus::Relinquish,
                               Stimulus::SeizeHigher,  Stimulus::SeizeLower,   Stimulus::SeizeFour,
                               Stimulus::ElsewhereGo,  Stimulus::RequestAgain, Stimulus::WriteReadOnly};

// The diagram. Leaving Idle takes this TPM no time, so that commandReady leads through Idle to Ready at once.
State expected(State from, Stimulus stimulus) {
    bool const response = from == State::Complete || from == State::ReadOut;
    switch (stimulus) {
    case Stimulus::CommandReady: return State::Ready;
    case Stimulus::Go: return from == State::Received ? State::Executing : from;
    case Stimulus::ResponseRetry: return response ? State::Complete : from;
    case Stimulus::WriteByte: return from == State::Ready ? State::Receiving : from;
    case Stimulus::ReadAll: return response ? State::ReadOut : from;
    case Stimulus::Cancel: return from == State::Executing ? State::Complete : from;
    case Stimulus::Relinquish:
    case Stimulus::SeizeHigher: return State::Idle;
    case Stimulus::ReadByte:
    case Stimulus::TwoBits:
    case Stimulus::SeizeLower:
    case Stimulus::SeizeFour:
    case Stimulus::ElsewhereGo:
    case Stimulus::RequestAgain:
    case Stimulus::WriteReadOnly: return from;
    }
    return from;
}

class TisStates : public testing::TestWithParam<std::tuple<State, Stimulus>> {
protected:
    void SetUp() override {
        tis = std::move(TpmTis::create(tpm, scheduler).value());
        tis->reset(ResetKind::Cold);
        bus.attach(*tis, tis::k_window_size);
    }
    void TearDown() override { tpm.release(); }

    void enter(State state) {
        ASSERT_TRUE(driver.request_locality());
        if (state == State::Idle) return;
        ASSERT_TRUE(driver.make_ready());
        if (state == State::Ready) return;
        if (state == State::Receiving) {
            for (size_t i = 0; i < 8; ++i) bus.write<uint8_t>(at(k_fifo), std::to_integer<uint8_t>(command[i]));
            return;
        }
        ASSERT_TRUE(driver.put(command));
        if (state == State::Received) return;
        tpm.hold();
        driver.go();
        tpm.wait_running();
        if (state == State::Executing) return;
        tpm.release();
        ASSERT_TRUE(poll_until([&] { return driver.has_response(); }));
        if (state == State::ReadOut) driver.get();
    }

    void apply(Stimulus stimulus) {
        switch (stimulus) {
        case Stimulus::CommandReady: driver.set_status(0x40); break;
        case Stimulus::Go:
            tpm.hold();
            driver.go();
            break;
        case Stimulus::ResponseRetry: driver.set_status(0x02); break;
        case Stimulus::WriteByte: bus.write<uint8_t>(at(k_fifo), 0x80); break;
        case Stimulus::ReadByte: bus.read<uint8_t>(at(k_fifo)); break;
        case Stimulus::ReadAll:
            for (size_t i = 0; i < tis::k_buffer_size; ++i) bus.read<uint8_t>(at(k_fifo));
            break;
        case Stimulus::Cancel:
            bus.write<uint8_t>(at(k_sts) + 3, 1);
            // Only a command that runs ends by it.
            if (std::get<0>(GetParam()) == State::Executing) {
                ASSERT_TRUE(poll_until([&] {
                    scheduler.advance(k_ns_per_ms);
                    return driver.has_response();
                }));
            }
            break;
        case Stimulus::TwoBits: driver.set_status(0x60); break;
        case Stimulus::Relinquish:
            driver.relinquish();
            EXPECT_EQ(driver.status(), UINT32_MAX);
            ASSERT_TRUE(driver.request_locality());
            break;
        case Stimulus::SeizeHigher:
            higher.set_access(0x08);
            EXPECT_EQ(higher.access() & 0x20, 0x20);
            EXPECT_EQ(driver.access() & 0x30, 0x10); // beenSeized
            EXPECT_EQ(driver.status(), UINT32_MAX);
            higher.relinquish();
            driver.set_access(0x10);
            ASSERT_TRUE(driver.request_locality());
            break;
        case Stimulus::SeizeLower: lower.set_access(0x08); break;
        case Stimulus::SeizeFour: bus.write<uint8_t>(0x4000, 0x08); break;
        case Stimulus::ElsewhereGo:
            for (uint64_t other : {0x0000U, 0x2000U, 0x3000U, 0x4000U}) {
                for (uint8_t bits : {uint8_t{0x40}, uint8_t{0x20}, uint8_t{0x02}})
                    bus.write<uint8_t>(other + k_sts, bits);
                bus.write<uint8_t>(other + k_sts + 3, 1);
                bus.write<uint8_t>(other + k_fifo, 0x80);
                EXPECT_EQ(bus.read<uint8_t>(other + k_fifo), 0xFF);
            }
            break;
        case Stimulus::RequestAgain: driver.set_access(0x02); break;
        case Stimulus::WriteReadOnly:
            for (uint64_t offset : {0x14U, 0x30U, 0xF00U, 0xF04U}) bus.write<uint32_t>(at(offset), 0xFFFF'FFFF);
            break;
        }
    }

    // By what the registers show; a command that runs shows no more than an idle TPM does.
    void check(State state) {
        EXPECT_EQ(driver.access() & 0xA0, 0xA0);
        uint32_t const status = driver.status();
        uint32_t const burst = status >> 8 & 0xFFFF;
        EXPECT_EQ(status & 0x0C00'0084, 0x0400'0084U);
        EXPECT_EQ((status & 0x40) != 0, state == State::Ready);
        EXPECT_EQ((status & 0x08) != 0, state == State::Receiving);
        EXPECT_EQ((status & 0x10) != 0, state == State::Complete);
        EXPECT_EQ(burst != 0, state != State::Idle && state != State::Executing && state != State::ReadOut);
        EXPECT_EQ(status & 0x0300'0022, 0U); // write-only bits
        if (state != State::Executing) {
            EXPECT_EQ(tis->save().has_value(), true); // no command is left running
            return;
        }
        tpm.release();
        EXPECT_TRUE(poll_until([&] { return driver.has_response(); }));
    }

    // The way on from wherever it is.
    void check_that_a_command_works() {
        tpm.release();
        driver.set_status(0x40);
        ASSERT_TRUE(driver.put(command));
        driver.go();
        ASSERT_TRUE(poll_until([&] { return driver.has_response(); }));
        auto response = driver.get();
        ASSERT_TRUE(succeeded(response));
        EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));
        EXPECT_EQ(tpm.locality, static_cast<Locality>(k_locality));
    }

    static uint64_t at(uint64_t offset) { return k_locality * tis::k_block_size + offset; }

    ManualScheduler scheduler;
    FakeTpm tpm;
    std::unique_ptr<TpmTis> tis;
    GuestBus bus;
    TisDriver lower{bus, k_locality - 1};
    TisDriver driver{bus, k_locality};
    TisDriver higher{bus, k_locality + 1};
    ByteVector command = commands::get_random(4);
};

TEST_P(TisStates, GoWhereTheDiagramSays) {
    auto [state, stimulus] = GetParam();
    ASSERT_NO_FATAL_FAILURE(enter(state));
    ASSERT_NO_FATAL_FAILURE(apply(stimulus));
    check(expected(state, stimulus));
    check_that_a_command_works();
}

INSTANTIATE_TEST_SUITE_P(All, TisStates, testing::Combine(testing::ValuesIn(k_states), testing::ValuesIn(k_stimuli)));

} // namespace
} // namespace coffer::tests
