// Every state of the CRB interface's state diagram (PC Client PTP 1.05 rev 14, 6.5.3) meets every stimulus, legal and
// not. What a driver can see says where the TPM is afterwards.
#include <gtest/gtest.h>

#include "tests/support/fake_tpm.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

constexpr uint64_t k_loc_ctrl = 0x08;
constexpr uint64_t k_ctrl_req = 0x40;
constexpr uint64_t k_ctrl_sts = 0x44;
constexpr uint64_t k_ctrl_start = 0x4C;
constexpr uint64_t k_buffer = 0x80;

enum class State {
    NoLocality, // and Idle
    Idle,
    Ready,
    Reception,
    Executing,
    Complete,
};
constexpr std::array k_states{State::NoLocality, State::Idle,      State::Ready,
                              State::Reception,  State::Executing, State::Complete};

enum class Stimulus {
    CmdReady,
    GoIdle,
    BothRequests, // undefined; the TPM goes Idle, from where software can go on
    Start,
    StartZero,
    Cancel,
    CancelZero,
    WriteBuffer,
    Request,
    Relinquish,
    Seize,            // there is no other locality to take from
    ResetEstablished, // refused to locality 0
    WriteReadOnly,
};
constexpr std::array k_stimuli{
    Stimulus::CmdReady, Stimulus::GoIdle,           Stimulus::BothRequests, Stimulus::Start,   Stimulus::StartZero,
    Stimulus::Cancel,   Stimulus::CancelZero,       Stimulus::WriteBuffer,  Stimulus::Request, Stimulus::Relinquish,
    Stimulus::Seize,    Stimulus::ResetEstablished, Stimulus::WriteReadOnly};

// The diagram; the ways from Complete to Ready and Reception are crb.hpp's choice. Start in Ready runs what the buffer
// holds, as in Reception: a TPM that is ready has seen no first byte of a command, but its buffer has one.
State expected(State from, Stimulus stimulus) {
    if (from == State::NoLocality) return stimulus == Stimulus::Request ? State::Idle : from;
    switch (stimulus) {
    case Stimulus::CmdReady:
        // It ends no reception, and no execution.
        return from == State::Executing || from == State::Reception ? from : State::Ready;
    case Stimulus::GoIdle:
    case Stimulus::BothRequests: return State::Idle;
    case Stimulus::Start: return from == State::Ready || from == State::Reception ? State::Executing : from;
    case Stimulus::Cancel: return from == State::Executing ? State::Complete : from;
    case Stimulus::WriteBuffer: return from == State::Ready || from == State::Complete ? State::Reception : from;
    case Stimulus::Relinquish: return State::NoLocality;
    case Stimulus::StartZero:
    case Stimulus::CancelZero:
    case Stimulus::Request:
    case Stimulus::Seize:
    case Stimulus::ResetEstablished:
    case Stimulus::WriteReadOnly: return from;
    }
    return from;
}

class CrbStates : public testing::TestWithParam<std::tuple<State, Stimulus>> {
protected:
    void SetUp() override {
        crb = std::move(TpmCrb::create(tpm, scheduler, k_tpm_address).value());
        crb->reset(ResetKind::Cold);
        bus.attach(*crb, crb::k_window_size);
        tpm.is_established = true;
    }
    void TearDown() override { tpm.release(); }

    void enter(State state) {
        if (state == State::NoLocality) return;
        ASSERT_TRUE(driver.request_locality());
        if (state == State::Idle) return;
        ASSERT_TRUE(driver.go_ready());
        if (state == State::Ready) return;
        driver.put(command);
        if (state == State::Reception) return;
        tpm.hold();
        driver.start();
        tpm.wait_running();
        if (state == State::Executing) return;
        tpm.release();
        ASSERT_TRUE(poll_until([&] { return !driver.running(); }));
    }

    void apply(State from, Stimulus stimulus) {
        switch (stimulus) {
        case Stimulus::CmdReady: bus.write<uint32_t>(k_ctrl_req, 1); break;
        case Stimulus::GoIdle: bus.write<uint32_t>(k_ctrl_req, 2); break;
        case Stimulus::BothRequests: bus.write<uint32_t>(k_ctrl_req, 3); break;
        case Stimulus::Start:
            tpm.hold();
            driver.start();
            break;
        case Stimulus::StartZero: bus.write<uint32_t>(k_ctrl_start, 0); break;
        case Stimulus::Cancel:
            driver.cancel(true);
            if (from == State::Executing) {
                ASSERT_TRUE(poll_until([&] {
                    scheduler.advance(k_ns_per_ms);
                    return !driver.running();
                }));
                EXPECT_EQ(response_code(driver.get()), rc(TpmResponseCode::Canceled));
            }
            break;
        case Stimulus::CancelZero: driver.cancel(false); break;
        case Stimulus::WriteBuffer: bus.write<uint32_t>(k_buffer, 0x0180); break;
        case Stimulus::Request: bus.write<uint32_t>(k_loc_ctrl, 1); break;
        case Stimulus::Relinquish: driver.relinquish(); break;
        case Stimulus::Seize: bus.write<uint32_t>(k_loc_ctrl, 4); break;
        case Stimulus::ResetEstablished: bus.write<uint32_t>(k_loc_ctrl, 8); break;
        case Stimulus::WriteReadOnly:
            for (uint64_t offset : {0x00U, 0x0CU, 0x30U, 0x34U, 0x38U, 0x44U, 0x50U, 0x54U, 0x58U, 0x5CU, 0x64U, 0x68U})
                bus.write<uint32_t>(offset, 0xFFFF'FFFF);
            break;
        }
    }

    void check(State state) {
        bool const granted = state != State::NoLocality;
        EXPECT_EQ(bus.read<uint32_t>(0x00), granted ? 0x82U : 0x80U); // LOC_STATE, established
        EXPECT_EQ(bus.read<uint32_t>(0x0C), granted ? 1U : 0U);       // LOC_STS
        EXPECT_EQ(bus.read<uint32_t>(k_ctrl_req), 0U);
        bool const idle = bus.read<uint32_t>(k_ctrl_sts) == 2;
        // Without locality it may be in any state but Executing: whoever has it next asks for Ready.
        if (granted) {
            EXPECT_EQ(idle, state == State::Idle);
        }
        EXPECT_EQ(driver.running(), state == State::Executing);
        if (state == State::Executing) {
            EXPECT_EQ(bus.read<uint32_t>(k_buffer), 0xFFFF'FFFFU);
            tpm.release();
            EXPECT_TRUE(poll_until([&] { return !driver.running(); }));
            EXPECT_TRUE(succeeded(driver.get()));
        } else {
            EXPECT_TRUE(crb->save()); // no command is left running
        }
    }

    // The way on from wherever it is.
    void check_that_a_command_works() {
        tpm.release();
        unsigned const before = tpm.executed;
        auto response = driver.transact(command);
        ASSERT_TRUE(succeeded(response));
        EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));
        EXPECT_EQ(tpm.executed, before + 1);
        EXPECT_TRUE(tpm.is_established);
    }

    ManualScheduler scheduler;
    FakeTpm tpm;
    std::unique_ptr<TpmCrb> crb;
    GuestBus bus;
    CrbDriver driver{bus};
    ByteVector command = commands::get_random(4);
};

TEST_P(CrbStates, GoWhereTheDiagramSays) {
    auto [state, stimulus] = GetParam();
    ASSERT_NO_FATAL_FAILURE(enter(state));
    ASSERT_NO_FATAL_FAILURE(apply(state, stimulus));
    check(expected(state, stimulus));
    check_that_a_command_works();
}

INSTANTIATE_TEST_SUITE_P(All, CrbStates, testing::Combine(testing::ValuesIn(k_states), testing::ValuesIn(k_stimuli)));

} // namespace
} // namespace coffer::tests
