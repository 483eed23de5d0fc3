// A real TPM with endorsement keys and certificates.
#include "crypto/hash.hpp"
#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/memory_nv_store.hpp"
#include "devices/tpm/tpm_facts.hpp"
#include "tests/unit/ca/ca_fixture.hpp"
#include "vmm/ca/tpm_certificates.hpp"

namespace coffer::vmm::tests {
namespace {

using devices::k_ek_profiles;
using devices::TpmCommand;
using devices::TpmCommandCode;
using devices::TpmTag;

class StartedTpm {
public:
    explicit StartedTpm(ByteVector state) {
        m_tpm = must(devices::LibtpmsBackend::create(std::move(state), devices::TpmManufacture::No, m_store));
        EXPECT_TRUE(client().startup());
    }
    devices::TpmClient client() { return devices::TpmClient(*m_tpm); }

private:
    devices::MemoryNvStore m_store;
    std::unique_ptr<devices::LibtpmsBackend> m_tpm;
};

Uuid const k_vm{Uuid::Storage{std::byte{0xAB}}};

TEST(MakeTpm, HasKeysAndCertificatesWhereTheProfileWantsThem) {
    TestAuthority host;
    auto const authority = host.authority();
    StartedTpm tpm(must(make_tpm(2, k_vm, authority)));
    auto client = tpm.client();
    EXPECT_EQ(must(client.active_banks()), 2);
    auto const facts = must(devices::read_tpm_facts(client));
    EXPECT_EQ(facts.persistent, (std::vector<uint32_t>{0x8101'0001, 0x8101'0002, 0x8101'0016}));
    std::vector<uint32_t> indices;
    for (auto const& index : facts.nv_indices) {
        indices.push_back(index.handle);
        EXPECT_EQ(index.attributes, 0x6207'2001U) << "written by the platform, readable by all";
    }
    EXPECT_EQ(indices, (std::vector<uint32_t>{0x01C0'0002, 0x01C0'000A, 0x01C0'0016, 0x01C0'0100, 0x01C0'8000}));

    auto const found = must(read_tpm_certificates(client));
    auto const chain = must(parse_chain(found.chain));
    ASSERT_EQ(chain.size(), 2U);
    EXPECT_EQ(must(chain[1].to_der()), must(host.root.to_der()));
    for (size_t i = 0; i < k_ek_profiles.size(); ++i) {
        auto const certificate = must(crypto::Certificate::parse_der(found.endorsement[i]));
        auto const verified = crypto::verify_chain(certificate, chain, wall_clock_seconds());
        EXPECT_TRUE(verified) << verified.error().message();
        auto const key = must(devices::create_endorsement_key(client, k_ek_profiles[i].kind));
        ASSERT_TRUE(key);
        EXPECT_TRUE(must(is_about(certificate, key->public_area))) << k_ek_profiles[i].name;
        auto const& other = found.endorsement[(i + 1) % k_ek_profiles.size()];
        EXPECT_FALSE(must(is_about(must(crypto::Certificate::parse_der(other)), key->public_area)));
        EXPECT_TRUE(devices::flush_object(client, key->handle));
    }
    auto const platform = must(parse_platform_certificate(found.platform));
    EXPECT_EQ(platform.platform_serial, k_vm.to_string());
    EXPECT_TRUE(chain[0].verifies(platform.signed_part, platform.signature));
}

TEST(MakeTpm, NoTwoTpmsAreAlike) {
    TestAuthority host;
    auto const authority = host.authority();
    TpmCertificates found[2];
    for (auto& certificates : found) {
        StartedTpm tpm(must(make_tpm(2, k_vm, authority)));
        auto client = tpm.client();
        certificates = must(read_tpm_certificates(client));
    }
    for (size_t i = 0; i < k_ek_profiles.size(); ++i)
        EXPECT_NE(must(must(crypto::Certificate::parse_der(found[0].endorsement[i])).public_key()),
                  must(must(crypto::Certificate::parse_der(found[1].endorsement[i])).public_key()));
}

TEST(CertifyTpm, ReplacesCertificatesAndKeepsKeys) {
    TestAuthority before;
    TestAuthority after;
    StartedTpm tpm(must(make_tpm(2, k_vm, before.authority())));
    auto client = tpm.client();
    auto const old = must(read_tpm_certificates(client));
    ASSERT_TRUE(certify_tpm(client, k_vm, after.authority()));
    auto const now = must(read_tpm_certificates(client));
    auto const chain = must(parse_chain(now.chain));
    for (size_t i = 0; i < k_ek_profiles.size(); ++i) {
        auto const certificate = must(crypto::Certificate::parse_der(now.endorsement[i]));
        EXPECT_TRUE(crypto::verify_chain(certificate, chain, wall_clock_seconds()));
        auto const old_certificate = must(crypto::Certificate::parse_der(old.endorsement[i]));
        EXPECT_EQ(must(certificate.public_key()), must(old_certificate.public_key()));
        EXPECT_NE(certificate.serial(), old_certificate.serial());
    }
}

TEST(CertifyTpm, LeavesATpmAloneWhoseKeysItCannotSee) {
    TestAuthority host;
    StartedTpm tpm(must(make_tpm(2, k_vm, host.authority())));
    auto client = tpm.client();
    auto const before = must(read_tpm_certificates(client));
    ASSERT_TRUE(client.demand("take a password", TpmCommand(TpmTag::Sessions, TpmCommandCode(0x129))
                                                     .u32(devices::k_tpm_rh_endorsement)
                                                     .empty_password()
                                                     .sized(as_bytes("secret"))
                                                     .take()));
    auto const certified = certify_tpm(client, k_vm, host.authority());
    ASSERT_FALSE(certified);
    EXPECT_EQ(certified.error().code(), ErrorCode::Unsupported);
    EXPECT_EQ(must(read_tpm_certificates(client)).endorsement, before.endorsement);
}

TEST(PlatformNv, TheOwnerReadsAndCannotChangeIt) {
    TestAuthority host;
    StartedTpm tpm(must(make_tpm(2, k_vm, host.authority())));
    auto client = tpm.client();
    auto by_owner = [](TpmCommandCode code) {
        return TpmCommand(TpmTag::Sessions, code)
            .u32(devices::k_tpm_rh_owner)
            .u32(k_ek_profiles[0].certificate_index)
            .empty_password();
    };
    auto write = by_owner(TpmCommandCode::NvWrite).sized(as_bytes("x")).u16(0).take();
    EXPECT_FALSE(must(client.transact(write)).ok());
    auto undefine = by_owner(TpmCommandCode::NvUndefineSpace).take();
    EXPECT_FALSE(must(client.transact(undefine)).ok());
    auto read = by_owner(TpmCommandCode::NvRead).u16(16).u16(0).take();
    EXPECT_TRUE(must(client.transact(read)).ok());
    EXPECT_TRUE(client.clear());
    EXPECT_TRUE(must(devices::read_platform_nv(client, k_ek_profiles[0].certificate_index)))
        << "certificates outlive TPM2_Clear";
    EXPECT_FALSE(must(devices::read_platform_nv(client, 0x01C0'0BAD)));
}

// EK Credential Profile 2.5, B.6: the templates' policies are computed from their definition.
TEST(EndorsementKeys, PolicyOfTheHighRangeIsWhatItsDefinitionGives) {
    using crypto::HashAlgorithm;
    auto number = [](uint32_t value) {
        ByteVector bytes(4);
        store_be<uint32_t>(bytes, 0, value);
        return bytes;
    };
    constexpr uint32_t k_policy_secret = 0x151, k_policy_or = 0x171, k_policy_authorize_nv = 0x192;
    auto policy_a_of = [&](HashAlgorithm algorithm, size_t size) {
        auto const inner = must(crypto::hash(
            algorithm, {ByteVector(size), number(k_policy_secret), number(devices::k_tpm_rh_endorsement)}));
        return must(crypto::hash(algorithm, {inner}));
    };
    auto const policy_a = policy_a_of(HashAlgorithm::Sha384, 48);
    // The index I-2 (B.5.2): SHA-384, attributes, PolicyA as its policy, room for an algorithm and a digest.
    TpmCommand area(TpmTag::NoSessions, TpmCommandCode::NvDefineSpace);
    area.u32(0x01C0'7F02).u16(0x000C).u32(0x220F'1008).sized(policy_a).u16(50);
    auto const bytes = area.take();
    auto const digest = must(crypto::hash(HashAlgorithm::Sha384, {Bytes(bytes).subspan(devices::k_tpm_header_size)}));
    ByteVector name{std::byte{0}, std::byte{0x0C}};
    append(name, digest);
    auto const policy_c =
        must(crypto::hash(HashAlgorithm::Sha384, {ByteVector(48), number(k_policy_authorize_nv), name}));
    auto const policy_b =
        must(crypto::hash(HashAlgorithm::Sha384, {ByteVector(48), number(k_policy_or), policy_a, policy_c}));

    TestAuthority host;
    StartedTpm tpm(must(make_tpm(2, k_vm, host.authority())));
    auto client = tpm.client();
    auto policy_of = [&](uint32_t handle) {
        auto const body = must(
            client.demand("show a key", TpmCommand(TpmTag::NoSessions, TpmCommandCode::ReadPublic).u32(handle).take()));
        devices::TpmReader outer(body);
        devices::TpmReader reader(outer.sized());
        (void)reader.u16();
        (void)reader.u16();
        (void)reader.u32();
        auto const policy = reader.sized();
        return ByteVector(policy.begin(), policy.end());
    };
    EXPECT_EQ(policy_of(0x8101'0016), policy_b);
    EXPECT_EQ(policy_of(0x8101'0001), policy_a_of(HashAlgorithm::Sha256, 32));
    EXPECT_EQ(policy_of(0x8101'0002), policy_a_of(HashAlgorithm::Sha256, 32));
}

} // namespace
} // namespace coffer::vmm::tests
