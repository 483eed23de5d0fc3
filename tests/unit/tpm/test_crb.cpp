#include "devices/tpm/crb.hpp"

#include <atomic>

#include <gtest/gtest.h>

#include "base/tagged.hpp"
#include "devices/tpm/crb_state.hpp"
#include "tests/support/fake_tpm.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

constexpr uint64_t k_loc_state = 0x00;
constexpr uint64_t k_loc_ctrl = 0x08;
constexpr uint64_t k_loc_sts = 0x0C;
constexpr uint64_t k_ctrl_req = 0x40;
constexpr uint64_t k_ctrl_sts = 0x44;
constexpr uint64_t k_ctrl_cancel = 0x48;
constexpr uint64_t k_ctrl_start = 0x4C;
constexpr uint64_t k_buffer = 0x80;
constexpr uint64_t k_page = 0x1000;

class CrbTest : public testing::Test {
protected:
    void SetUp() override {
        auto created = TpmCrb::create(tpm, scheduler, k_tpm_address);
        ASSERT_TRUE(created);
        crb = *std::move(created);
        crb->reset(ResetKind::Cold);
        bus.attach(*crb, crb::k_window_size);
    }

    ManualScheduler scheduler;
    FakeTpm tpm;
    std::unique_ptr<TpmCrb> crb;
    GuestBus bus;
    CrbDriver driver{bus};
};

TEST_F(CrbTest, IdentifiesItself) {
    EXPECT_NE(bus.read<uint8_t>(0), 0xFF);
    EXPECT_EQ(bus.read<uint64_t>(0x30), 0x0001'1014'0002'5811U);
    EXPECT_EQ(bus.read<uint32_t>(0x58), 3968U);
    EXPECT_EQ(bus.read<uint32_t>(0x5C), 0xFED4'1000U);
    EXPECT_EQ(bus.read<uint32_t>(0x60), 0U);
    EXPECT_EQ(bus.read<uint32_t>(0x64), 3968U);
    EXPECT_EQ(bus.read<uint64_t>(0x68), 0xFED4'1000U);
    for (uint64_t offset : {0x58U, 0x5CU, 0x60U, 0x64U, 0x68U, 0x6CU}) {
        auto before = bus.read<uint32_t>(offset);
        bus.write<uint32_t>(offset, 0x1234'5678);
        EXPECT_EQ(bus.read<uint32_t>(offset), before);
    }
}

TEST_F(CrbTest, LocalityIsRequestedAndRelinquished) {
    EXPECT_EQ(bus.read<uint32_t>(k_loc_state), 0x81U);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_sts), 0U);
    bus.write<uint32_t>(k_loc_ctrl, 1);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_state), 0x83U);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_sts), 1U);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_ctrl), 0U);
    bus.write<uint32_t>(k_loc_ctrl, 2);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_state), 0x81U);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_sts), 0U);
    tpm.is_established = true;
    EXPECT_EQ(bus.read<uint32_t>(k_loc_state), 0x80U);
    // Locality 0 may not reset the flag.
    bus.write<uint32_t>(k_loc_ctrl, 8);
    ASSERT_TRUE(crb->save());
    EXPECT_EQ(bus.read<uint32_t>(k_loc_state), 0x80U);
}

TEST_F(CrbTest, NothingStartsWithoutLocalityOrReady) {
    bus.write<uint32_t>(k_ctrl_req, 1);
    EXPECT_EQ(bus.read<uint32_t>(k_ctrl_sts), 2U); // still idle
    driver.start();
    EXPECT_FALSE(driver.running());
    ASSERT_TRUE(driver.request_locality());
    driver.put(commands::startup());
    EXPECT_EQ(bus.read<uint64_t>(k_buffer), 0U); // Idle takes no command
    driver.start();
    ASSERT_TRUE(driver.go_ready());
    EXPECT_EQ(tpm.executed, 0U);
    driver.put(commands::startup());
    driver.start();
    ASSERT_TRUE(poll_until([&] { return !driver.running(); }));
    EXPECT_EQ(tpm.executed, 1U);
    // Completed: no second start of the same command.
    auto response = driver.get();
    driver.start();
    EXPECT_FALSE(driver.running());
    EXPECT_EQ(driver.get(), response);
    EXPECT_EQ(tpm.executed, 1U);
}

TEST_F(CrbTest, TheNextCommandMayBeWrittenOverAResponse) {
    // Linux' tpm_crb goes Idle at the end of a session of commands, not between them.
    ASSERT_TRUE(driver.begin(commands::startup()));
    ASSERT_TRUE(poll_until([&] { return !driver.running(); }));
    driver.put(commands::get_random(4));
    EXPECT_EQ(bus.read<uint32_t>(k_ctrl_sts), 0U);
    driver.start();
    ASSERT_TRUE(poll_until([&] { return !driver.running(); }));
    EXPECT_EQ(tpm.executed, 2U);
}

TEST_F(CrbTest, ShortCommandIsDoneAtTheFirstLook) {
    // What is promised is a wait, and a loaded host may still lose the race now and then.
    unsigned done = 0;
    for (int i = 0; i < 50; ++i) {
        ASSERT_TRUE(driver.begin(commands::get_random(4)));
        done += !driver.running();
        driver.end();
    }
    EXPECT_GE(done, 5U);
}

TEST_F(CrbTest, BufferIsNobodysWhileACommandRuns) {
    tpm.hold();
    ASSERT_TRUE(driver.begin(commands::get_random(4)));
    tpm.wait_running();
    EXPECT_TRUE(driver.running());
    EXPECT_EQ(bus.read<uint32_t>(k_buffer), 0xFFFF'FFFFU);
    bus.write<uint32_t>(k_buffer, 0);
    bus.write<uint32_t>(k_ctrl_req, 1); // ignored
    EXPECT_TRUE(driver.running());
    tpm.release();
    EXPECT_TRUE(succeeded(driver.end()));
}

TEST_F(CrbTest, CancelEndsACommand) {
    tpm.hold();
    tpm.lose_cancels = 2;
    ASSERT_TRUE(driver.begin(commands::get_random(4)));
    tpm.wait_running();
    driver.cancel(true);
    EXPECT_EQ(bus.read<uint32_t>(k_ctrl_cancel), 1U);
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return !driver.running();
    }));
    EXPECT_EQ(response_code(driver.end()), rc(TpmResponseCode::Canceled));
    EXPECT_EQ(bus.read<uint32_t>(k_ctrl_cancel), 0U);
}

TEST_F(CrbTest, GoingIdleDropsARunningCommand) {
    tpm.hold();
    ASSERT_TRUE(driver.begin(commands::get_random(4)));
    tpm.wait_running();
    ASSERT_TRUE(driver.go_idle());
    EXPECT_FALSE(driver.running());
    tpm.release();
    EXPECT_TRUE(succeeded(driver.transact(commands::get_random(8))));
}

TEST_F(CrbTest, RelinquishingDropsARunningCommand) {
    tpm.hold();
    ASSERT_TRUE(driver.begin(commands::get_random(4)));
    tpm.wait_running();
    driver.relinquish();
    EXPECT_FALSE(driver.running());
    tpm.release();
    EXPECT_TRUE(succeeded(driver.transact(commands::get_random(8))));
}

TEST_F(CrbTest, WholeBufferGoesThereAndBack) {
    ByteVector command(3958, std::byte{0x5C}); // its echo just fits
    store_be<uint32_t>(command, k_tpm_size_offset, 3958);
    auto response = driver.transact(command);
    ASSERT_EQ(response.size(), 3968U);
    EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));

    ByteVector longest(3968, std::byte{0x5D});
    store_be<uint32_t>(longest, k_tpm_size_offset, 3968);
    response = driver.transact(longest);
    ASSERT_EQ(response.size(), 3968U);
    EXPECT_EQ(response.back(), std::byte{0x5D});
    EXPECT_EQ(bus.read<uint8_t>(0xFFF), 0x5D);
}

TEST_F(CrbTest, TheBufferIsAtBothItsPlaces) {
    EXPECT_EQ(bus.read<uint32_t>(0x5C), 0xFED4'1000U);
    EXPECT_EQ(bus.read<uint64_t>(0x68), 0xFED4'1000U);
    bus.write<uint32_t>(k_page, 0x1122'3344);
    EXPECT_EQ(bus.read<uint32_t>(k_page), 0U); // no locality
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.go_ready());
    auto command = commands::get_random(4);
    for (size_t i = 0; i < command.size(); ++i) bus.write<uint8_t>(k_page + i, std::to_integer<uint8_t>(command[i]));
    bus.write<uint64_t>(0x1F78, 0x1122'3344'5566'7788);
    EXPECT_EQ(bus.read<uint64_t>(0xFF8), 0x1122'3344'5566'7788U);
    driver.start();
    ASSERT_TRUE(poll_until([&] { return !driver.running(); }));
    auto response = driver.get();
    ASSERT_TRUE(succeeded(response));
    EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));
    for (size_t i = 0; i < response.size(); ++i)
        EXPECT_EQ(bus.read<uint8_t>(k_page + i), std::to_integer<uint8_t>(response[i]));
}

TEST_F(CrbTest, CommandSizeOfTheHeaderIsBounded) {
    for (uint32_t claimed : {0U, 9U, 3969U, 0xFFFF'FFFFU}) {
        auto command = commands::get_random(4);
        store_be<uint32_t>(command, k_tpm_size_offset, claimed);
        auto response = driver.transact(command);
        EXPECT_EQ(response.size(), claimed < 10 ? 20U : 3968U);
    }
}

TEST_F(CrbTest, OddAccessesReadAllOnesAndChangeNothing) {
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.go_ready());
    for (size_t size : {0U, 3U, 5U, 6U, 7U, 9U, 16U, 64U}) {
        ByteVector bytes(size, std::byte{0x11});
        EXPECT_EQ(crb->mmio_write(k_ctrl_start, bytes), IoStatus::BadSize);
        EXPECT_EQ(crb->mmio_read(k_buffer, bytes), IoStatus::BadSize);
        EXPECT_EQ(bytes, ByteVector(size, std::byte{0xFF}));
    }
    for (uint64_t offset : {0xFFDULL, 0x1F7DULL, 0x1F80ULL, 0x2000ULL, 0xFFFF'FFFF'FFFF'FFFEULL}) {
        ByteVector bytes(4, std::byte{0x11});
        EXPECT_EQ(crb->mmio_write(offset, bytes), IoStatus::NoSuchRegister);
        EXPECT_EQ(crb->mmio_read(offset, bytes), IoStatus::NoSuchRegister);
        EXPECT_EQ(bytes, ByteVector(4, std::byte{0xFF}));
    }
    EXPECT_EQ(tpm.executed, 0U);
    // 2 and 4 bytes that straddle registers and buffer are halves of both.
    bus.write<uint32_t>(0x7E, 0xAABB'CCDD);
    EXPECT_EQ(bus.read<uint32_t>(0x7E), 0xAABB'0000U);
    bus.write<uint64_t>(0x101, 0x1122'3344'5566'7788);
    EXPECT_EQ(bus.read<uint64_t>(0x101), 0x1122'3344'5566'7788U);
}

TEST_F(CrbTest, BytesOfARegisterReadAsItsParts) {
    uint32_t id = bus.read<uint32_t>(0x30);
    for (unsigned i = 0; i < 4; ++i) EXPECT_EQ(bus.read<uint8_t>(0x30 + i), (id >> (8 * i)) & 0xFF);
    bus.write<uint8_t>(k_loc_ctrl, 1);
    EXPECT_EQ(bus.read<uint8_t>(k_loc_sts), 1);
    bus.write<uint8_t>(k_loc_ctrl + 1, 2); // not the relinquish bit
    EXPECT_EQ(bus.read<uint8_t>(k_loc_sts), 1);
}

TEST_F(CrbTest, ResetPowerCyclesTheTpmWithoutWaiting) {
    ASSERT_TRUE(crb->save());
    unsigned before = tpm.power_cycles;
    tpm.hold();
    ASSERT_TRUE(driver.begin(commands::get_random(4)));
    tpm.wait_running();
    crb->reset(ResetKind::Warm);
    EXPECT_EQ(bus.read<uint32_t>(k_ctrl_sts), 2U);
    EXPECT_EQ(bus.read<uint32_t>(k_loc_state), 0x81U);
    EXPECT_EQ(bus.read<uint64_t>(k_buffer), 0U);
    tpm.release();
    EXPECT_TRUE(succeeded(driver.transact(commands::startup())));
    EXPECT_EQ(tpm.power_cycles, before + 1);
}

TEST_F(CrbTest, SavingWaitsForTheCommand) {
    tpm.hold();
    auto command = commands::get_random(4);
    ASSERT_TRUE(driver.begin(command));
    tpm.wait_running();
    std::thread releaser([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        tpm.release();
    });
    auto state = crb->save();
    releaser.join();
    ASSERT_TRUE(state) << state.error().message();
    crb->reset(ResetKind::Cold);
    ASSERT_TRUE(crb->restore(*state));
    EXPECT_FALSE(driver.running());
    auto response = driver.get();
    ASSERT_TRUE(succeeded(response));
    EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));
}

// What the guest reads and writes by itself: registers in one page, the buffer in another.
class CrbPagesTest : public testing::Test {
protected:
    void SetUp() override {
        auto created = TpmCrb::create(tpm, scheduler, k_tpm_address, CrbPages{registers, buffer});
        ASSERT_TRUE(created);
        crb = *std::move(created);
        crb->reset(ResetKind::Cold);
        bus.attach(*crb, crb::k_window_size);
    }
    void TearDown() override { tpm.release(); }

    uint32_t shown(uint64_t offset) {
        // SAFETY: registers are aligned; the TPM's thread writes this page.
        return std::atomic_ref(*reinterpret_cast<uint32_t*>(registers.data() + offset)).load();
    }
    void expect_same() {
        for (uint64_t offset = 0; offset < k_buffer; offset += 4)
            EXPECT_EQ(shown(offset), bus.read<uint32_t>(offset)) << offset;
    }
    void put(Bytes bytes) { std::copy(bytes.begin(), bytes.end(), buffer.begin()); }

    ManualScheduler scheduler;
    FakeTpm tpm;
    alignas(4096) std::array<std::byte, crb::k_block_size> registers{};
    alignas(4096) std::array<std::byte, crb::k_block_size> buffer{};
    std::unique_ptr<TpmCrb> crb;
    GuestBus bus;
    CrbDriver driver{bus};
    ByteVector command = commands::get_random(4);
};

TEST_F(CrbPagesTest, ShowTheRegistersAndTheBuffer) {
    expect_same();
    EXPECT_EQ(shown(0x5C), 0xFED4'1000U);
    EXPECT_EQ(shown(0x68), 0xFED4'1000U);
    EXPECT_EQ(shown(k_ctrl_sts), 2U);
    ASSERT_TRUE(driver.request_locality());
    expect_same();
    ASSERT_TRUE(driver.go_ready());
    expect_same();
    // The second command comes without any sign but Start.
    for (unsigned round = 1; round <= 2; ++round) {
        tpm.hold();
        put(command);
        driver.start();
        tpm.wait_running();
        EXPECT_EQ(shown(k_ctrl_start), 1U);
        bus.write<uint32_t>(0x58, 0); // another look at the registers changes nothing
        EXPECT_EQ(shown(k_ctrl_start), 1U);
        tpm.release();
        ASSERT_TRUE(poll_until([&] { return shown(k_ctrl_start) == 0; }));
        EXPECT_EQ(tpm.executed, round);
        EXPECT_TRUE(std::equal(command.begin(), command.end(), buffer.begin() + 10));
        EXPECT_TRUE(std::equal(buffer.begin(), buffer.begin() + 22, registers.begin() + k_buffer));
    }
    expect_same();
    crb->reset(ResetKind::Warm);
    expect_same();
    EXPECT_EQ(buffer, decltype(buffer){});
}

TEST_F(CrbPagesTest, TheWindowIsOnTheSameBuffer) {
    auto response = driver.transact(command);
    EXPECT_TRUE(succeeded(response));
    EXPECT_TRUE(std::equal(response.begin(), response.end(), buffer.begin()));
    expect_same();
}

TEST_F(CrbPagesTest, AnAbandonedResponseIsNotShown) {
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.go_ready());
    tpm.hold();
    put(command);
    driver.start();
    tpm.wait_running();
    ASSERT_TRUE(driver.go_idle());
    EXPECT_EQ(shown(k_ctrl_start), 0U);
    buffer.fill(std::byte{0x77});
    tpm.release();
    ASSERT_TRUE(crb->save()); // the TPM's thread comes to rest
    EXPECT_EQ(buffer[0], std::byte{0x77});
    EXPECT_EQ(buffer[20], std::byte{0x77});
}

TEST_F(CrbPagesTest, ARestoredStateIsShown) {
    auto response = driver.transact(command);
    ASSERT_TRUE(driver.request_locality());
    auto state = crb->save();
    ASSERT_TRUE(state) << state.error().message();
    crb->reset(ResetKind::Cold);
    ASSERT_TRUE(crb->restore(*state));
    expect_same();
    EXPECT_EQ(shown(0x0C), 1U);
    EXPECT_TRUE(std::equal(response.begin(), response.end(), buffer.begin()));
}

TEST_F(CrbPagesTest, ACancelIsShownUntilTheCommandEnds) {
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.go_ready());
    driver.cancel(true); // of nothing
    EXPECT_EQ(shown(0x48), 0U);
    tpm.hold();
    put(command);
    driver.start();
    tpm.wait_running();
    driver.cancel(true);
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return shown(k_ctrl_start) == 0;
    }));
    EXPECT_EQ(shown(0x48), 0U);
    EXPECT_EQ(response_code(driver.get()), rc(TpmResponseCode::Canceled));
}

TEST_F(CrbPagesTest, ADoorbellMayAskForIdle) {
    bool asked = false;
    crb->set_idle_doorbell([&] { return std::exchange(asked, false); });
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.go_ready());
    asked = true;
    crb->look();
    EXPECT_EQ(shown(k_ctrl_sts), 2U);
    // Before a later request, which is heard.
    asked = true;
    ASSERT_TRUE(driver.go_ready());
    expect_same();
    // And by nobody without locality.
    driver.relinquish();
    asked = true;
    crb->look();
    EXPECT_EQ(shown(k_ctrl_sts), 0U);
}

TEST_F(CrbTest, RunningIsNoStateToRestore) {
    TpmCrbState state;
    state.phase = crb::Phase::Executing;
    state.buffer.resize(crb::k_buffer_size);
    EXPECT_FALSE(crb->restore(encode_fields(state)));
    state.phase = static_cast<crb::Phase>(9);
    EXPECT_FALSE(crb->restore(encode_fields(state)));
    state.phase = crb::Phase::Idle;
    EXPECT_TRUE(crb->restore(encode_fields(state)));
    state.buffer.resize(crb::k_buffer_size + 1);
    EXPECT_FALSE(crb->restore(encode_fields(state)));
}

} // namespace
} // namespace coffer::tests
