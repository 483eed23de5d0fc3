// A TPM as tools see it: manufacture with chosen PCR banks, its facts, and clearing it.
#include "devices/tpm/memory_nv_store.hpp"
#include "devices/tpm/tpm_endorsement.hpp"
#include "devices/tpm/tpm_facts.hpp"
#include "devices/tpm/tpm_manufacture.hpp"
#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

constexpr PcrBankMask k_sha256_bit = 2;
constexpr PcrBankMask k_sha384_bit = 4;
constexpr PcrBankMask k_sha512_bit = 8;

// A TPM of these banks, started up.
class StartedTpm {
public:
    explicit StartedTpm(PcrBankMask banks) {
        auto state = manufacture_tpm(banks);
        EXPECT_TRUE(state) << state.error().message();
        auto tpm = LibtpmsBackend::create(std::move(*state), TpmManufacture::No, m_store);
        EXPECT_TRUE(tpm) << tpm.error().message();
        m_tpm = *std::move(tpm);
        start();
    }
    TpmClient client() { return TpmClient(*m_tpm); }
    void power_cycle() {
        EXPECT_TRUE(m_tpm->power_cycle());
        start();
    }
    TpmFacts facts() {
        auto tpm = client();
        auto facts = read_tpm_facts(tpm);
        EXPECT_TRUE(facts) << facts.error().message();
        return facts ? std::move(*facts) : TpmFacts{};
    }
    void run(ByteVector const& command) {
        auto done = client().demand("do what a test wants", command);
        EXPECT_TRUE(done) << done.error().message();
    }
    void set_password(uint32_t hierarchy) {
        constexpr auto k_hierarchy_change_auth = TpmCommandCode(0x129);
        run(TpmCommand(TpmTag::Sessions, k_hierarchy_change_auth)
                .u32(hierarchy)
                .empty_password()
                .sized(as_bytes("secret"))
                .take());
    }

private:
    void start() {
        auto started = client().startup();
        EXPECT_TRUE(started) << started.error().message();
    }

    MemoryNvStore m_store;
    std::unique_ptr<LibtpmsBackend> m_tpm;
};

TEST(PcrBanks, ListsAreParsedAndWritten) {
    EXPECT_EQ(*parse_pcr_banks("sha256"), k_sha256_bit);
    EXPECT_EQ(*parse_pcr_banks("sha512,sha256"), k_sha512_bit | k_sha256_bit);
    EXPECT_EQ(*parse_pcr_banks("sha1,sha256,sha384,sha512"), k_all_pcr_banks);
    EXPECT_EQ(format_pcr_banks(k_all_pcr_banks), "sha1,sha256,sha384,sha512");
    EXPECT_EQ(format_pcr_banks(k_sha384_bit), "sha384");
    for (auto const* wrong : {"", ",", "sha256,", ",sha256", "SHA256", "sha256 ,sha1", "sha256,sha256", "md5"})
        EXPECT_FALSE(parse_pcr_banks(wrong)) << wrong;
}

TEST(TpmManufacture, HasExactlyTheBanksAskedFor) {
    for (PcrBankMask banks = 1; banks <= k_all_pcr_banks; ++banks) {
        StartedTpm tpm(banks);
        EXPECT_EQ(*tpm.client().active_banks(), banks);
        for (auto const& bank : k_pcr_banks) {
            auto values = tpm.client().read_pcrs(bank);
            if ((banks & bank.bit) == 0) {
                EXPECT_FALSE(values) << bank.name;
                continue;
            }
            ASSERT_TRUE(values) << values.error().message();
            ASSERT_EQ(values->size(), k_pcr_count);
            EXPECT_EQ((*values)[0], ByteVector(bank.digest_size));
            EXPECT_EQ((*values)[17], ByteVector(bank.digest_size, std::byte{0xFF}));
        }
        tpm.power_cycle();
        EXPECT_EQ(*tpm.client().active_banks(), banks);
    }
}

TEST(TpmManufacture, EveryTpmIsAnother) {
    auto one = StartedTpm(k_sha256_bit).facts();
    auto other = StartedTpm(k_sha256_bit).facts();
    ASSERT_EQ(one.endorsement_keys.size(), k_ek_profiles.size());
    for (size_t i = 0; i < k_ek_profiles.size(); ++i) EXPECT_NE(one.endorsement_keys[i].name, other.endorsement_keys[i].name);
}

TEST(TpmManufacture, SetsThatAreNotPossibleAreRefused) {
    EXPECT_FALSE(manufacture_tpm(0));
    EXPECT_FALSE(manufacture_tpm(0x10));
    EXPECT_FALSE(manufacture_tpm(0x12));
}

TEST(TpmFacts, OfANewTpm) {
    StartedTpm tpm(k_sha256_bit | k_sha384_bit);
    auto facts = tpm.facts();
    EXPECT_EQ(facts.family, "2.0");
    EXPECT_GE(facts.revision, 159U);
    EXPECT_EQ(facts.manufacturer, "IBM");
    EXPECT_EQ(facts.banks, k_sha256_bit | k_sha384_bit);
    EXPECT_TRUE(facts.nv_indices.empty());
    EXPECT_TRUE(facts.persistent.empty());
    EXPECT_FALSE(facts.owner_auth_set || facts.endorsement_auth_set || facts.lockout_auth_set);
    EXPECT_FALSE(facts.locked_out || facts.clear_disabled);
    EXPECT_EQ(facts.lockout_counter, 0U);
    EXPECT_GT(facts.max_auth_failures, 0U);
    for (auto const& key : facts.endorsement_keys) {
        // The high range's templates have names of SHA-384.
        bool const high = key.type == "ecc-p384";
        ASSERT_EQ(key.name.size(), high ? 50U : 34U) << key.type;
        EXPECT_EQ(load_be<uint16_t>(key.name), high ? 0x000C : commands::k_sha256) << key.type;
    }
    EXPECT_EQ(facts.endorsement_keys, tpm.facts().endorsement_keys) << "keys come from the seed alone";
}

TEST(TpmFacts, TellWhatTheOwnerDid) {
    StartedTpm tpm(k_sha256_bit);
    tpm.run(commands::nv_define(48));
    tpm.set_password(k_tpm_rh_endorsement);
    auto facts = tpm.facts();
    ASSERT_EQ(facts.nv_indices.size(), 1U);
    EXPECT_EQ(facts.nv_indices[0].handle, commands::k_nv_index);
    EXPECT_EQ(facts.nv_indices[0].size, 48);
    EXPECT_TRUE(facts.endorsement_auth_set);
    for (auto const& key : facts.endorsement_keys) EXPECT_TRUE(key.name.empty());
}

TEST(TpmClear, TakesTheTpmFromItsOwner) {
    StartedTpm tpm(k_sha256_bit);
    auto before = tpm.facts();
    tpm.run(commands::nv_define(48));
    tpm.set_password(k_tpm_rh_owner);
    // The owner's wish that it be not cleared does not bind the platform.
    tpm.run(TpmCommand(TpmTag::Sessions, TpmCommandCode::ClearControl)
                .u32(k_tpm_rh_platform)
                .empty_password()
                .u8(1)
                .take());
    ASSERT_TRUE(tpm.facts().owner_auth_set);
    ASSERT_TRUE(tpm.facts().clear_disabled);
    auto cleared = tpm.client().clear();
    ASSERT_TRUE(cleared) << cleared.error().message();
    tpm.power_cycle();
    auto after = tpm.facts();
    EXPECT_FALSE(after.owner_auth_set);
    EXPECT_FALSE(after.clear_disabled);
    EXPECT_TRUE(after.nv_indices.empty());
    EXPECT_EQ(after.endorsement_keys, before.endorsement_keys) << "the endorsement seed stays";
}

TEST(TpmReader, PastTheEndReadsZeroAndSaysSo) {
    std::array bytes{std::byte{1}, std::byte{2}, std::byte{3}};
    TpmReader reader(bytes);
    EXPECT_EQ(reader.u16(), 0x0102);
    EXPECT_TRUE(reader.ok());
    EXPECT_EQ(reader.u32(), 0U);
    EXPECT_FALSE(reader.ok());
    EXPECT_EQ(reader.u8(), 0);
    TpmReader sized(bytes);
    EXPECT_TRUE(sized.sized().empty());
    EXPECT_FALSE(sized.ok());
}

} // namespace
} // namespace coffer::tests
