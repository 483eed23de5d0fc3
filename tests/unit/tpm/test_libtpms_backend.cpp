#include "devices/tpm/libtpms_backend.hpp"

#include <gtest/gtest.h>

#include "devices/tpm/tpm_command.hpp"
#include "tests/support/fakes.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

std::unique_ptr<LibtpmsBackend> manufactured(FakeNvStore& store) {
    auto tpm = LibtpmsBackend::create(std::nullopt, TpmManufacture::Yes, store);
    EXPECT_TRUE(tpm) << tpm.error().message();
    return tpm ? *std::move(tpm) : nullptr;
}

ByteVector execute(TpmBackend& tpm, Bytes command, Locality locality = Locality::Zero) {
    ByteVector response(4096);
    auto size = tpm.execute(locality, command, response);
    EXPECT_TRUE(size) << size.error().message();
    response.resize(size ? *size : 0);
    return response;
}

TEST(LibtpmsBackend, ManufactureIsDurableBeforeCreateReturns) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    EXPECT_EQ(store.commits, 1U);
    EXPECT_FALSE(store.content.empty());
    EXPECT_EQ(tpm->permanent_state().value(), store.content);
}

TEST(LibtpmsBackend, ManufactureFailsWhereTheStoreDoes) {
    FakeNvStore store;
    store.fail = true;
    auto tpm = LibtpmsBackend::create(std::nullopt, TpmManufacture::Yes, store);
    ASSERT_FALSE(tpm);
    EXPECT_EQ(tpm.error().code(), ErrorCode::NoSpace);
}

TEST(LibtpmsBackend, MissingStateIsNeverANewTpm) {
    FakeNvStore store;
    for (auto const& stored : {std::optional<ByteVector>{}, std::optional<ByteVector>{ByteVector{}}}) {
        auto tpm = LibtpmsBackend::create(stored, TpmManufacture::No, store);
        ASSERT_FALSE(tpm);
        EXPECT_EQ(tpm.error().code(), ErrorCode::NotFound);
    }
    EXPECT_EQ(store.commits, 0U);
}

TEST(LibtpmsBackend, StoredStateIsNeverManufacturedOver) {
    FakeNvStore store;
    manufactured(store).reset();
    auto tpm = LibtpmsBackend::create(store.content, TpmManufacture::Yes, store);
    ASSERT_FALSE(tpm);
    EXPECT_EQ(tpm.error().code(), ErrorCode::AlreadyExists);
}

TEST(LibtpmsBackend, OneInAProcess) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    auto second = LibtpmsBackend::create(std::nullopt, TpmManufacture::Yes, store);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), ErrorCode::Busy);
    // The refusal leaves the first one alone, and its end makes room.
    EXPECT_TRUE(succeeded(execute(*tpm, commands::startup())));
    tpm.reset();
    EXPECT_TRUE(LibtpmsBackend::create(store.content, TpmManufacture::No, store));
}

TEST(LibtpmsBackend, StateThatDoesNotLoadIsFatalAndStaysAsItIs) {
    FakeNvStore store;
    manufactured(store).reset();
    auto good = store.content;
    unsigned commits = store.commits;
    for (size_t size = 1; size < good.size(); size += 37) {
        ByteVector cut(good.begin(), good.begin() + static_cast<ptrdiff_t>(size));
        auto tpm = LibtpmsBackend::create(cut, TpmManufacture::No, store);
        ASSERT_FALSE(tpm) << "cut to " << size;
        EXPECT_EQ(tpm.error().code(), ErrorCode::Integrity);
    }
    EXPECT_EQ(store.commits, commits);
    EXPECT_TRUE(LibtpmsBackend::create(good, TpmManufacture::No, store));
}

TEST(LibtpmsBackend, NewTpmHasTheBanks) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    struct Bank {
        uint16_t algorithm;
        size_t digest;
    };
    for (auto bank : {Bank{0x0004, 20}, Bank{0x000B, 32}, Bank{0x000C, 48}, Bank{0x000D, 64}}) {
        auto response = execute(*tpm, commands::pcr_read(bank.algorithm, 0));
        ASSERT_TRUE(succeeded(response));
        // header, update counter, selection (count, algorithm, size, 3 bytes), digest count, digest size
        ASSERT_EQ(response.size(), 10 + 4 + 10 + 4 + 2 + bank.digest) << bank.algorithm;
        EXPECT_EQ(load_be<uint16_t>(response, 28), bank.digest);
    }
}

TEST(LibtpmsBackend, CommitsOnlyWhatChanged) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    ASSERT_TRUE(tpm->make_durable());
    unsigned commits = store.commits;
    EXPECT_TRUE(succeeded(execute(*tpm, commands::get_random(8))));
    EXPECT_TRUE(tpm->make_durable());
    EXPECT_EQ(store.commits, commits);
    EXPECT_TRUE(succeeded(execute(*tpm, commands::nv_define(16))));
    EXPECT_EQ(store.commits, commits);
    EXPECT_TRUE(tpm->make_durable());
    EXPECT_EQ(store.commits, commits + 1);
    EXPECT_EQ(store.content, tpm->permanent_state().value());
}

TEST(LibtpmsBackend, FailedCommitIsTriedAgainAndNothingIsLost) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    ASSERT_TRUE(succeeded(execute(*tpm, commands::nv_define(4))));
    auto before = store.content;
    store.fail = true;
    EXPECT_FALSE(tpm->make_durable());
    EXPECT_FALSE(tpm->make_durable());
    EXPECT_EQ(store.content, before);
    // It is no failure mode: the TPM goes on, and the state gets there.
    EXPECT_TRUE(succeeded(execute(*tpm, commands::get_random(8))));
    store.fail = false;
    EXPECT_TRUE(tpm->make_durable());
    EXPECT_EQ(store.content, tpm->permanent_state().value());
    EXPECT_NE(store.content, before);
}

TEST(LibtpmsBackend, PowerCycleNeedsStartupAndKeepsNv) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    ASSERT_TRUE(succeeded(execute(*tpm, commands::nv_define(4))));
    ByteVector data{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
    ASSERT_TRUE(succeeded(execute(*tpm, commands::nv_write(data))));
    ByteVector digest(32, std::byte{7});
    ASSERT_TRUE(succeeded(execute(*tpm, commands::pcr_extend(0, commands::k_sha256, digest))));
    auto extended = execute(*tpm, commands::pcr_read(commands::k_sha256, 0));

    ASSERT_TRUE(tpm->power_cycle());
    EXPECT_EQ(response_code(execute(*tpm, commands::get_random(8))), rc(TpmResponseCode::Initialize));
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    auto read = execute(*tpm, commands::nv_read(4));
    ASSERT_TRUE(succeeded(read));
    EXPECT_TRUE(std::equal(data.begin(), data.end(), read.begin() + 16));
    auto after = execute(*tpm, commands::pcr_read(commands::k_sha256, 0));
    EXPECT_EQ(load_be<uint64_t>(after, 30), 0U);
    EXPECT_NE(load_be<uint64_t>(extended, 30), 0U);
}

TEST(LibtpmsBackend, SuspendedStateComesBack) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    ByteVector digest(48, std::byte{7});
    ASSERT_TRUE(succeeded(execute(*tpm, commands::pcr_extend(3, commands::k_sha384, digest))));
    auto pcr = execute(*tpm, commands::pcr_read(commands::k_sha384, 3));
    auto volatile_state = tpm->volatile_state();
    auto permanent = tpm->permanent_state();
    ASSERT_TRUE(volatile_state && permanent);

    ASSERT_TRUE(tpm->power_cycle());
    ASSERT_TRUE(tpm->restore(*permanent, *volatile_state));
    EXPECT_EQ(execute(*tpm, commands::pcr_read(commands::k_sha384, 3)), pcr);

    ByteVector cut(volatile_state->begin(), volatile_state->begin() + 100);
    EXPECT_FALSE(tpm->restore(*permanent, cut));
    EXPECT_FALSE(tpm->restore({}, *volatile_state));
    EXPECT_TRUE(tpm->restore(*permanent, *volatile_state));
    EXPECT_EQ(execute(*tpm, commands::pcr_read(commands::k_sha384, 3)), pcr);
}

TEST(LibtpmsBackend, GarbageGetsAnError) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    EXPECT_FALSE(succeeded(execute(*tpm, {})));
    for (size_t size : {1U, 2U, 9U, 10U, 11U, 100U, 3968U, 4096U})
        for (unsigned fill : {0x00U, 0x80U, 0xFFU})
            EXPECT_FALSE(succeeded(execute(*tpm, ByteVector(size, static_cast<std::byte>(fill)))));
    auto lying = commands::get_random(8);
    store_be<uint32_t>(lying, k_tpm_size_offset, 0xFFFF'FFFF);
    EXPECT_EQ(response_code(execute(*tpm, lying)), rc(TpmResponseCode::CommandSize));
    EXPECT_TRUE(succeeded(execute(*tpm, commands::get_random(8))));
}

TEST(LibtpmsBackend, HashSequenceOfTheHardwareSetsEstablished) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    ASSERT_TRUE(succeeded(execute(*tpm, commands::startup())));
    EXPECT_FALSE(tpm->established());
    auto before = execute(*tpm, commands::pcr_read(commands::k_sha256, 17));
    ASSERT_TRUE(tpm->hash_start());
    EXPECT_TRUE(tpm->hash_data(as_bytes("measured")));
    EXPECT_TRUE(tpm->hash_end());
    EXPECT_TRUE(tpm->established());
    EXPECT_NE(execute(*tpm, commands::pcr_read(commands::k_sha256, 17)), before);
    auto refused = tpm->reset_established(Locality::Two);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::Permission);
    EXPECT_TRUE(tpm->reset_established(Locality::Three));
    EXPECT_FALSE(tpm->established());
}

TEST(LibtpmsBackend, BufferIsLimited) {
    FakeNvStore store;
    auto tpm = manufactured(store);
    auto size = tpm->limit_buffer_size(crb::k_buffer_size);
    ASSERT_TRUE(size);
    EXPECT_EQ(*size, crb::k_buffer_size);
    EXPECT_FALSE(tpm->limit_buffer_size(512));
}

} // namespace
} // namespace coffer::tests
