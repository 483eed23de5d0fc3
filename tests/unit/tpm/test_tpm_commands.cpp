// A guest's use of a real TPM through each register interface.
#include <algorithm>

#include <gtest/gtest.h>

#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

template <class Machine>
class TpmCommands : public testing::Test {
protected:
    void SetUp() override { ASSERT_TRUE(succeeded(machine.transact(commands::startup()))); }
    ByteVector transact(Bytes command) { return machine.transact(command); }
    // What follows the header and the parameter size of a response with sessions.
    static Bytes parameters(Bytes response) { return response.subspan(14); }

    SharedNvStore store;
    Machine machine{store};
};

using Machines = testing::Types<CrbMachine, TisMachine>;
TYPED_TEST_SUITE(TpmCommands, Machines);

TYPED_TEST(TpmCommands, SelfTestAndRandom) {
    EXPECT_TRUE(succeeded(this->transact(commands::self_test())));
    auto first = this->transact(commands::get_random(32));
    auto second = this->transact(commands::get_random(32));
    ASSERT_EQ(first.size(), 44U);
    EXPECT_NE(first, second);
}

TYPED_TEST(TpmCommands, ExtendChangesItsBankAlone) {
    ByteVector digest(32, std::byte{0xAB});
    auto sha256 = this->transact(commands::pcr_read(commands::k_sha256, 7));
    auto sha384 = this->transact(commands::pcr_read(commands::k_sha384, 7));
    ASSERT_TRUE(succeeded(this->transact(commands::pcr_extend(7, commands::k_sha256, digest))));
    auto extended = this->transact(commands::pcr_read(commands::k_sha256, 7));
    // SHA-256 of 32 zero bytes and 32 bytes 0xAB, by coreutils' sha256sum.
    std::array<uint64_t, 4> expected{0xDEBB'3E7A'CFFF'6DD1, 0x8D50'1042'2736'29F0, 0xB79C'B206'BB8C'24F5,
                                     0x9F62'DDB8'0849'403B};
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(load_be<uint64_t>(extended, 30 + 8 * i), expected[i]);
    auto other = this->transact(commands::pcr_read(commands::k_sha384, 7));
    EXPECT_TRUE(std::equal(sha384.begin() + 14, sha384.end(), other.begin() + 14, other.end()));
    EXPECT_FALSE(std::equal(sha256.begin() + 14, sha256.end(), extended.begin() + 14, extended.end()));
}

TYPED_TEST(TpmCommands, NvAndPersistentKeySurviveAPowerCycle) {
    ASSERT_TRUE(succeeded(this->transact(commands::nv_define(8))));
    auto data = as_bytes("8 bytes!");
    ASSERT_TRUE(succeeded(this->transact(commands::nv_write(data))));
    auto primary = this->transact(commands::create_primary());
    ASSERT_TRUE(succeeded(primary));
    auto handle = load_be<uint32_t>(primary, k_tpm_header_size);
    ASSERT_TRUE(succeeded(this->transact(commands::make_persistent(handle))));
    auto name = this->transact(commands::read_public(commands::k_persistent));
    ASSERT_TRUE(succeeded(name));
    ASSERT_TRUE(succeeded(this->transact(commands::shutdown())));

    this->machine.power_cycle();
    ASSERT_EQ(response_code(this->transact(commands::get_random(4))), rc(TpmResponseCode::Initialize));
    ASSERT_TRUE(succeeded(this->transact(commands::startup())));
    auto read = this->transact(commands::nv_read(8));
    ASSERT_TRUE(succeeded(read));
    EXPECT_TRUE(std::equal(data.begin(), data.end(), this->parameters(read).begin() + 2));
    EXPECT_EQ(this->transact(commands::read_public(commands::k_persistent)), name);
    EXPECT_FALSE(succeeded(this->transact(commands::read_public(handle))));
}

// A power cut right behind a response: whatever was acknowledged is there.
TYPED_TEST(TpmCommands, AcknowledgedWritesSurviveWithoutShutdown) {
    ASSERT_TRUE(succeeded(this->transact(commands::nv_define(2))));
    for (unsigned i = 0; i < 8; ++i) {
        ByteVector data{static_cast<std::byte>(i), std::byte{0x77}};
        ASSERT_TRUE(succeeded(this->transact(commands::nv_write(data))));
        this->machine.power_cycle();
        ASSERT_TRUE(succeeded(this->transact(commands::startup())));
        auto read = this->transact(commands::nv_read(2));
        ASSERT_TRUE(succeeded(read));
        EXPECT_EQ(this->parameters(read)[2], data[0]);
    }
}

TYPED_TEST(TpmCommands, ResponseIsHeldWhileTheStoreRefuses) {
    ASSERT_TRUE(succeeded(this->transact(commands::nv_define(4))));
    auto before = this->store.content();
    this->store.fail = true;
    this->machine.begin(commands::nv_write(as_bytes("held")));
    ASSERT_TRUE(poll_until([&] { return this->store.refusals >= 2; }));
    EXPECT_TRUE(this->machine.running());
    EXPECT_EQ(this->store.content(), before);
    this->store.fail = false;
    EXPECT_TRUE(succeeded(this->machine.end()));
    EXPECT_NE(this->store.content(), before);
    this->machine.power_cycle();
    ASSERT_TRUE(succeeded(this->transact(commands::startup())));
    EXPECT_TRUE(succeeded(this->transact(commands::nv_read(4))));
}

TYPED_TEST(TpmCommands, RetryWhileTheStoreRefusesAndNothingIsLost) {
    ASSERT_TRUE(succeeded(this->transact(commands::nv_define(4))));
    ASSERT_TRUE(succeeded(this->transact(commands::nv_write(as_bytes("old!")))));
    auto before = this->store.content();
    this->store.fail = true;
    this->machine.begin(commands::nv_write(as_bytes("new!")));
    ASSERT_TRUE(poll_until([&] { return this->store.refusals > 0; }));
    ASSERT_TRUE(this->machine.running());
    this->machine.give_up();
    EXPECT_EQ(response_code(this->transact(commands::get_random(4))), rc(TpmResponseCode::Retry));
    EXPECT_EQ(response_code(this->transact(commands::nv_read(4))), rc(TpmResponseCode::Retry));
    EXPECT_EQ(this->store.content(), before);
    this->store.fail = false;
    EXPECT_TRUE(succeeded(this->transact(commands::get_random(4))));
    auto read = this->transact(commands::nv_read(4));
    ASSERT_TRUE(succeeded(read));
    // The command ran, and nobody was told that it had not.
    auto expected = as_bytes("new!");
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), this->parameters(read).begin() + 2));
    this->machine.power_cycle();
    ASSERT_TRUE(succeeded(this->transact(commands::startup())));
    EXPECT_EQ(this->transact(commands::nv_read(4)), read);
}

TYPED_TEST(TpmCommands, CancelEndsAKeyCreation) {
    // RSA keys take from ten milliseconds to some seconds: one of some is still under way when the cancel comes.
    bool cancelled = false;
    for (int i = 0; i < 50 && !cancelled; ++i) {
        this->machine.begin(commands::create_primary(3072));
        this->machine.cancel();
        ASSERT_TRUE(poll_until([&] {
            this->machine.scheduler().advance(k_ns_per_ms);
            return !this->machine.running();
        }));
        auto response = this->machine.end();
        cancelled = response_code(response) == rc(TpmResponseCode::Canceled);
        if (cancelled) break;
        ASSERT_TRUE(succeeded(response));
        this->machine.power_cycle();
        ASSERT_TRUE(succeeded(this->transact(commands::startup())));
    }
    EXPECT_TRUE(cancelled);
    EXPECT_TRUE(succeeded(this->transact(commands::get_random(4))));
}

TYPED_TEST(TpmCommands, GarbageAndOversizeGetErrors) {
    for (unsigned fill : {0x00U, 0x80U, 0xFFU}) {
        ByteVector garbage(64, static_cast<std::byte>(fill));
        store_be<uint32_t>(garbage, k_tpm_size_offset, 64);
        auto response = this->transact(garbage);
        EXPECT_EQ(response.size(), 10U);
        EXPECT_FALSE(succeeded(response));
    }
    ByteVector longest(3968, std::byte{0xA5});
    store_be<uint16_t>(longest, 0, 0x8001);
    store_be<uint32_t>(longest, k_tpm_size_offset, 3968);
    store_be<uint32_t>(longest, k_tpm_code_offset, static_cast<uint32_t>(TpmCommandCode::GetRandom));
    EXPECT_FALSE(succeeded(this->transact(longest)));
    EXPECT_TRUE(succeeded(this->transact(commands::get_random(4))));
}

TYPED_TEST(TpmCommands, ResetOfTheVmIsAPowerCycle) {
    ByteVector digest(32, std::byte{1});
    ASSERT_TRUE(succeeded(this->transact(commands::pcr_extend(1, commands::k_sha256, digest))));
    this->machine.device().reset(ResetKind::Warm);
    EXPECT_EQ(response_code(this->transact(commands::get_random(4))), rc(TpmResponseCode::Initialize));
    ASSERT_TRUE(succeeded(this->transact(commands::startup())));
    EXPECT_EQ(load_be<uint64_t>(this->transact(commands::pcr_read(commands::k_sha256, 1)), 30), 0U);
}

} // namespace
} // namespace coffer::tests
