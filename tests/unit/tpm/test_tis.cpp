#include "devices/tpm/tis.hpp"

#include <gtest/gtest.h>

#include "base/tagged.hpp"
#include "devices/tpm/tis_state.hpp"
#include "tests/support/fake_tpm.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

constexpr uint64_t k_int_enable = 0x08;
constexpr uint64_t k_int_vector = 0x0C;
constexpr uint64_t k_int_status = 0x10;
constexpr uint64_t k_sts = 0x18;
constexpr uint64_t k_fifo = 0x24;
constexpr uint64_t k_xfifo = 0x80;
constexpr uint64_t k_locality = 0x1000;
constexpr unsigned k_gsi = 10;

class TisTest : public testing::Test {
protected:
    void SetUp() override {
        auto created = TpmTis::create(tpm, scheduler, IrqLine(irqs, k_gsi));
        ASSERT_TRUE(created);
        tis = *std::move(created);
        tis->reset(ResetKind::Cold);
        bus.attach(*tis, tis::k_window_size);
    }
    void TearDown() override { tpm.release(); }

    bool begin(Bytes bytes, unsigned locality = 0) {
        auto& at = drivers[locality];
        if (!at.request_locality() || !at.make_ready() || !at.put(bytes)) return false;
        at.go();
        return true;
    }
    ByteVector finish(unsigned locality = 0) {
        auto& at = drivers[locality];
        EXPECT_TRUE(poll_until([&] { return at.has_response(); }));
        auto response = at.get();
        at.set_status(0x40);
        return response;
    }
    ByteVector transact(Bytes bytes, unsigned locality = 0) {
        EXPECT_TRUE(begin(bytes, locality));
        return finish(locality);
    }
    bool is_active(unsigned locality) { return (drivers[locality].access() & 0x20) != 0; }

    ManualScheduler scheduler;
    FakeTpm tpm;
    FakeIrqSink irqs;
    std::unique_ptr<TpmTis> tis;
    GuestBus bus;
    std::array<TisDriver, 5> drivers{TisDriver(bus, 0), TisDriver(bus, 1), TisDriver(bus, 2), TisDriver(bus, 3),
                                     TisDriver(bus, 4)};
    TisDriver& driver = drivers[0];
    ByteVector command = commands::get_random(4);
};

TEST_F(TisTest, IdentifiesItself) {
    for (uint64_t base = 0; base < 5 * k_locality; base += k_locality) {
        EXPECT_EQ(bus.read<uint8_t>(base), 0x81);
        EXPECT_EQ(bus.read<uint32_t>(base + 0x14), 0x3000'0697U);
        EXPECT_EQ(bus.read<uint32_t>(base + 0x30), 0x2100U);
        EXPECT_EQ(bus.read<uint32_t>(base + 0xF00), 0x0001'1014U);
        EXPECT_EQ(bus.read<uint8_t>(base + 0xF04), 1);
        bus.write<uint32_t>(base + 0x30, 0xFFFF'FFFF);
        EXPECT_EQ(bus.read<uint32_t>(base + 0x30), 0x2100U);
    }
    tpm.is_established = true;
    EXPECT_EQ(driver.access(), 0x80);
}

TEST_F(TisTest, IdentifiesItselfAsTis13WhereAskedTo) {
    tis = std::move(TpmTis::create(tpm, scheduler, {}, tis::Generation::Tis13).value());
    for (uint64_t base = 0; base < 5 * k_locality; base += k_locality) {
        std::array<std::byte, 4> bytes{};
        EXPECT_EQ(tis->mmio_read(base + 0x30, bytes), IoStatus::Ok);
        EXPECT_EQ(load_le<uint32_t>(bytes), 0xFFFF'FFFFU); // no TPM_INTERFACE_ID
        EXPECT_EQ(tis->mmio_read(base + 0x14, bytes), IoStatus::Ok);
        EXPECT_EQ(load_le<uint32_t>(bytes), 0x3000'0697U);
    }
}

TEST_F(TisTest, LocalityIsGrantedWhenFree) {
    EXPECT_EQ(bus.read<uint32_t>(k_sts), 0xFFFF'FFFFU);
    ASSERT_TRUE(driver.request_locality());
    EXPECT_EQ(driver.access(), 0xA1);
    EXPECT_NE(bus.read<uint32_t>(k_sts), 0xFFFF'FFFFU);
    EXPECT_EQ(bus.read<uint32_t>(k_locality + k_sts), 0xFFFF'FFFFU);
    driver.relinquish();
    EXPECT_EQ(driver.access(), 0x81);
}

TEST_F(TisTest, HighestRequestIsNext) {
    ASSERT_TRUE(driver.request_locality());
    for (unsigned other : {2U, 1U, 3U}) {
        drivers[other].set_access(0x02);
        EXPECT_EQ(drivers[other].access() & 0x22, 0x02);
    }
    EXPECT_EQ(driver.access(), 0xA5); // another locality asks
    drivers[3].set_access(0x20);      // and takes its request back
    driver.relinquish();
    EXPECT_TRUE(is_active(2));
    EXPECT_EQ(drivers[2].access(), 0xA5); // 1 still asks
    drivers[2].relinquish();
    EXPECT_TRUE(is_active(1));
    drivers[1].relinquish();
    for (unsigned locality = 0; locality < 5; ++locality) EXPECT_EQ(drivers[locality].access(), 0x81);
}

TEST_F(TisTest, SeizeTakesFromALowerLocalityOnly) {
    ASSERT_TRUE(drivers[1].request_locality());
    driver.set_access(0x08);
    EXPECT_TRUE(is_active(1));
    drivers[1].set_access(0x08); // from itself: nothing
    EXPECT_EQ(drivers[1].access(), 0xA1);
    drivers[3].set_access(0x08);
    EXPECT_TRUE(is_active(3));
    EXPECT_EQ(drivers[1].access(), 0x91);
    drivers[1].set_access(0x10);
    EXPECT_EQ(drivers[1].access(), 0x81);
    // Without an active locality it is a request.
    drivers[3].relinquish();
    driver.set_access(0x08);
    EXPECT_TRUE(is_active(0));
}

TEST_F(TisTest, SeizingDropsWhatIsUnderWay) {
    tpm.hold();
    ASSERT_TRUE(begin(command));
    tpm.wait_running();
    drivers[2].set_access(0x08);
    ASSERT_TRUE(is_active(2));
    tpm.release();
    auto other = commands::get_random(9);
    auto response = transact(other, 2);
    ASSERT_TRUE(succeeded(response));
    EXPECT_TRUE(std::equal(other.begin(), other.end(), response.begin() + 10));
    EXPECT_EQ(tpm.locality, Locality::Two);
}

TEST_F(TisTest, LocalityFourIsTheChipsets) {
    drivers[4].set_access(0x02);
    EXPECT_EQ(drivers[4].access(), 0x81);
    ASSERT_TRUE(driver.request_locality());
    drivers[4].set_access(0x08);
    EXPECT_TRUE(is_active(0));
}

TEST_F(TisTest, TwoAccessBitsAtOnceAreNoRequest) {
    driver.set_access(0x0A);
    EXPECT_EQ(driver.access(), 0x81);
}

TEST_F(TisTest, StatesGoTheirWay) {
    ASSERT_TRUE(driver.request_locality());
    EXPECT_EQ(driver.status(), 0x0400'0084U); // Idle: valid, self-test done, TPM 2.0
    bus.write<uint8_t>(k_fifo, 0x80);
    driver.go();
    driver.set_status(0x02);
    EXPECT_EQ(driver.status(), 0x0400'0084U);
    driver.set_status(0x40);
    EXPECT_EQ(driver.status(), 0x0410'00C4U); // Ready, burst 4096
    driver.set_status(0x40);
    driver.go();
    EXPECT_EQ(driver.status(), 0x0410'00C4U);
    bus.write<uint8_t>(k_fifo, std::to_integer<uint8_t>(command[0]));
    EXPECT_EQ(driver.status(), 0x040F'FF8CU); // Reception, expecting
    driver.go();                              // too early
    EXPECT_EQ(driver.status(), 0x040F'FF8CU);
    for (size_t i = 1; i < command.size(); ++i) bus.write<uint8_t>(k_fifo, std::to_integer<uint8_t>(command[i]));
    EXPECT_EQ(driver.status() & 0xFF, 0x84U);
    bus.write<uint8_t>(k_fifo, 0xEE); // one too many is not taken
    EXPECT_EQ(tpm.executed, 0U);
    driver.set_status(0x60); // two bits at once are no request
    EXPECT_EQ(tpm.executed, 0U);
    driver.go();
    ASSERT_TRUE(poll_until([&] { return driver.has_response(); }));
    EXPECT_EQ(driver.status(), 0x0400'0094U | 22U << 8);
    driver.go();
    bus.write<uint8_t>(k_fifo, 0);
    EXPECT_EQ(tpm.executed, 1U);
    auto first = driver.read_some(12);
    EXPECT_EQ(driver.status(), 0x0400'0094U | 10U << 8);
    driver.set_status(0x02); // retry: from the start
    auto whole = driver.get();
    ASSERT_EQ(whole.size(), 22U);
    EXPECT_TRUE(std::equal(first.begin(), first.end(), whole.begin()));
    EXPECT_TRUE(std::equal(command.begin(), command.end(), whole.begin() + 10));
    EXPECT_EQ(driver.status(), 0x0400'0084U);
    EXPECT_EQ(bus.read<uint8_t>(k_fifo), 0xFF);
    driver.set_status(0x02);
    EXPECT_EQ(driver.get(), whole);
    driver.set_status(0x40);
    EXPECT_EQ(driver.status(), 0x0410'00C4U);
    driver.relinquish();
    ASSERT_TRUE(driver.request_locality());
    EXPECT_EQ(driver.status(), 0x0400'0084U);
}

TEST_F(TisTest, CommandReadyAbortsReceptionAndExecution) {
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.make_ready());
    bus.write<uint32_t>(k_fifo, 0x1234'5678);
    driver.set_status(0x40);
    EXPECT_EQ(driver.status(), 0x0410'00C4U);
    tpm.hold();
    ASSERT_TRUE(driver.put(command));
    driver.go();
    tpm.wait_running();
    EXPECT_EQ(driver.status(), 0x0400'0084U);
    EXPECT_EQ(bus.read<uint8_t>(k_fifo), 0xFF);
    driver.set_status(0x40);
    EXPECT_EQ(driver.status(), 0x0410'00C4U);
    tpm.release();
    EXPECT_TRUE(succeeded(transact(command)));
}

TEST_F(TisTest, CommandCancel) {
    tpm.hold();
    tpm.lose_cancels = 2;
    ASSERT_TRUE(begin(command));
    tpm.wait_running();
    bus.write<uint32_t>(k_sts, 1U << 24);
    ASSERT_TRUE(poll_until([&] {
        scheduler.advance(k_ns_per_ms);
        return driver.has_response();
    }));
    EXPECT_EQ(response_code(finish()), rc(TpmResponseCode::Canceled));
}

TEST_F(TisTest, EstablishmentIsResetFromLocalityThree) {
    tpm.is_established = true;
    for (unsigned locality : {0U, 1U, 2U, 3U}) {
        ASSERT_TRUE(drivers[locality].request_locality());
        bus.write<uint8_t>(locality * k_locality + k_sts + 3, 2);
        ASSERT_TRUE(tis->save()); // lets the TPM's thread come to rest
        EXPECT_EQ(tpm.is_established, locality < 3);
        drivers[locality].relinquish();
    }
}

TEST_F(TisTest, FifoTakesAllSizesAtBothPlaces) {
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.make_ready());
    ByteVector sent(30, std::byte{0});
    for (size_t i = 10; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i);
    store_be<uint32_t>(sent, 2, 30);
    bus.write<uint8_t>(k_fifo, load_le<uint8_t>(sent, 0));
    bus.write<uint16_t>(k_fifo, load_le<uint16_t>(sent, 1));
    bus.write<uint32_t>(k_fifo, load_le<uint32_t>(sent, 3));
    bus.write<uint64_t>(k_xfifo, load_le<uint64_t>(sent, 7));
    bus.write<uint8_t>(k_fifo + 3, load_le<uint8_t>(sent, 15));
    bus.write<uint32_t>(k_xfifo + 0x3C, load_le<uint32_t>(sent, 16));
    bus.write<uint64_t>(k_xfifo, load_le<uint64_t>(sent, 20));
    EXPECT_EQ(driver.status() & 0x08, 0x08U);
    bus.write<uint64_t>(k_xfifo, load_le<uint16_t>(sent, 28)); // six bytes too many
    EXPECT_EQ(driver.status() & 0x08, 0U);
    driver.go();
    ASSERT_TRUE(poll_until([&] { return driver.has_response(); }));
    ByteVector got(40);
    for (size_t i = 0; i < 40; i += 8) store_le<uint64_t>(got, i, bus.read<uint64_t>(k_xfifo));
    EXPECT_TRUE(std::equal(sent.begin(), sent.end(), got.begin() + 10));
    EXPECT_FALSE(driver.has_response());
}

TEST_F(TisTest, LyingSizeEndsAtTheBuffer) {
    ASSERT_TRUE(driver.request_locality());
    ASSERT_TRUE(driver.make_ready());
    ByteVector sent(5000, std::byte{0x11});
    store_be<uint32_t>(sent, 2, 0xFFFF'FFFF);
    for (std::byte b : sent) bus.write<uint8_t>(k_fifo, std::to_integer<uint8_t>(b));
    EXPECT_EQ(driver.status(), 0x0400'0084U);
    driver.go();
    EXPECT_EQ(finish().size(), 4096U);
    // A size below that of a header is all there once it is known.
    ASSERT_TRUE(driver.make_ready());
    for (size_t i = 0; i < 6; ++i) bus.write<uint8_t>(k_fifo, 0);
    EXPECT_EQ(driver.status() & 0x08, 0U);
    driver.go();
    EXPECT_EQ(finish().size(), 16U);
}

TEST_F(TisTest, InterruptsFollowTheirEnables) {
    ASSERT_TRUE(driver.request_locality());
    bus.write<uint32_t>(k_int_enable, 0xFFFF'FFFF);
    EXPECT_EQ(bus.read<uint32_t>(k_int_enable), 0x8000'008FU);
    bus.write<uint8_t>(k_int_vector, 0xFA);
    EXPECT_EQ(bus.read<uint8_t>(k_int_vector), 0x0A);
    EXPECT_EQ(bus.read<uint32_t>(k_int_status), 0U);

    ASSERT_TRUE(driver.make_ready());
    EXPECT_TRUE(irqs.levels[k_gsi]);
    EXPECT_EQ(bus.read<uint32_t>(k_int_status), 0x80U);
    bus.write<uint32_t>(k_int_status, 0x80);
    EXPECT_FALSE(irqs.levels[k_gsi]);

    tpm.hold();
    ASSERT_TRUE(driver.put(command));
    driver.go();
    tpm.wait_running();
    tpm.release();
    // Without a look of the guest: the I/O thread brings the interrupt.
    ASSERT_TRUE(poll_until([&] {
        scheduler.run_tasks();
        return irqs.levels[k_gsi];
    }));
    EXPECT_EQ(bus.read<uint32_t>(k_int_status), 0x03U);
    bus.write<uint32_t>(k_int_status, 0x01);
    EXPECT_TRUE(irqs.levels[k_gsi]);
    bus.write<uint32_t>(k_int_status, 0x02);
    EXPECT_FALSE(irqs.levels[k_gsi]);
    finish();
    bus.write<uint32_t>(k_int_status, 0x80);

    // The global bit masks all.
    bus.write<uint8_t>(k_int_enable + 3, 0);
    EXPECT_EQ(bus.read<uint32_t>(k_int_enable), 0x8FU);
    transact(command);
    EXPECT_FALSE(irqs.levels[k_gsi]);
}

TEST_F(TisTest, LocalityChangeInterrupts) {
    ASSERT_TRUE(drivers[1].request_locality());
    bus.write<uint32_t>(k_locality + k_int_enable, 0x8000'0004);
    drivers[1].relinquish();
    ASSERT_TRUE(driver.request_locality());
    EXPECT_FALSE(irqs.levels[k_gsi]);
    drivers[1].set_access(0x02);
    driver.relinquish();
    EXPECT_TRUE(irqs.levels[k_gsi]);
    EXPECT_EQ(bus.read<uint32_t>(k_locality + k_int_status), 4U);
}

TEST_F(TisTest, OnlyTheActiveLocalityWrites) {
    bus.write<uint32_t>(k_int_enable, 0x8000'008F);
    EXPECT_EQ(bus.read<uint32_t>(k_int_enable), 0x08U);
    ASSERT_TRUE(drivers[1].request_locality());
    driver.set_status(0x40);
    EXPECT_EQ(drivers[1].status() & 0x40, 0U);
    ASSERT_TRUE(drivers[1].make_ready());
    bus.write<uint8_t>(k_fifo, 0x80);
    EXPECT_EQ(drivers[1].status() & 0x40, 0x40U);
}

TEST_F(TisTest, OddAccessesReadAllOnesAndChangeNothing) {
    ASSERT_TRUE(driver.request_locality());
    for (size_t size : {0U, 3U, 5U, 6U, 7U, 9U, 64U}) {
        ByteVector bytes(size, std::byte{0x40});
        EXPECT_EQ(tis->mmio_write(k_sts, bytes), IoStatus::BadSize);
        EXPECT_EQ(tis->mmio_read(0, bytes), IoStatus::BadSize);
        EXPECT_EQ(bytes, ByteVector(size, std::byte{0xFF}));
    }
    for (uint64_t offset : {uint64_t{0x4FFD}, uint64_t{0x5000}, uint64_t{0xFFFF'FFFF'FFFF'FFFE}}) {
        ByteVector bytes(4, std::byte{0x20});
        EXPECT_EQ(tis->mmio_write(offset, bytes), IoStatus::NoSuchRegister);
        EXPECT_EQ(tis->mmio_read(offset, bytes), IoStatus::NoSuchRegister);
        EXPECT_EQ(bytes, ByteVector(4, std::byte{0xFF}));
    }
    EXPECT_EQ(driver.status(), 0x0400'0084U);
}

TEST_F(TisTest, SavingWaitsForTheCommand) {
    tpm.hold();
    ASSERT_TRUE(begin(command));
    tpm.wait_running();
    std::thread releaser([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        tpm.release();
    });
    auto state = tis->save();
    releaser.join();
    ASSERT_TRUE(state) << state.error().message();
    tis->reset(ResetKind::Cold);
    ASSERT_TRUE(tis->restore(*state));
    EXPECT_TRUE(is_active(0));
    auto response = finish();
    ASSERT_TRUE(succeeded(response));
    EXPECT_TRUE(std::equal(command.begin(), command.end(), response.begin() + 10));
}

TEST_F(TisTest, ImpossibleStatesAreRefused) {
    auto refused = [&](auto&& change) {
        TpmTisState state;
        state.active = 1;
        state.phase = tis::Phase::Completed;
        state.fifo.resize(20);
        EXPECT_TRUE(tis->restore(encode_fields(state)));
        change(state);
        return !tis->restore(encode_fields(state));
    };
    EXPECT_TRUE(refused([](auto& s) { s.active = 4; }));
    EXPECT_TRUE(refused([](auto& s) { s.active = 0xFF; }));
    EXPECT_TRUE(refused([](auto& s) { s.phase = tis::Phase::Executing; }));
    EXPECT_TRUE(refused([](auto& s) { s.phase = static_cast<tis::Phase>(5); }));
    EXPECT_TRUE(refused([](auto& s) { s.phase = tis::Phase::Idle; }));
    EXPECT_TRUE(refused([](auto& s) { s.read_offset = 21; }));
    EXPECT_TRUE(refused([](auto& s) { s.fifo.resize(4097); }));
    EXPECT_TRUE(refused([](auto& s) { s.localities[2].int_enable = 0; }));
    EXPECT_TRUE(refused([](auto& s) { s.localities[2].int_status = 0x10; }));
    EXPECT_TRUE(refused([](auto& s) { s.localities[2].int_vector = 0x10; }));
    EXPECT_TRUE(refused([](auto& s) { s.localities[4].requested = true; }));
}

} // namespace
} // namespace coffer::tests
