// What an authority takes and issues.
#include "tests/unit/ca/ca_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

devices::EkPublic ecc_key() {
    // The base point of P-256 (FIPS 186-4, D.1.2.3), which is a point of the curve.
    constexpr std::string_view k_x = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";
    constexpr std::string_view k_y = "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    devices::EkPublic key;
    key.kind = devices::EkKind::EccP256;
    for (auto [text, to] : {std::pair{k_x, &key.x}, {k_y, &key.y}})
        for (size_t i = 0; i < text.size(); i += 2)
            to->push_back(static_cast<std::byte>(std::stoul(std::string(text.substr(i, 2)), nullptr, 16)));
    return key;
}

TpmIdentity identity() {
    return {0x49424D00, "SW   TPM", 0x20191023, "2.0", 0, 164};
}

void expect_refused(Result<Authority> const& authority, std::string_view why) {
    ASSERT_FALSE(authority);
    EXPECT_EQ(authority.error().code(), ErrorCode::InvalidArgument);
    EXPECT_NE(authority.error().message().find(why), std::string::npos) << authority.error().message();
}

TEST(Authority, TakesAChainThatIsOneAndNoOther) {
    TestAuthority host;
    TestAuthority other;
    EXPECT_TRUE(Authority::create(host.key_copy(), host.chain()));
    expect_refused(Authority::create(other.key_copy(), host.chain()), "private key");
    expect_refused(Authority::create(host.key_copy(), {}), "chain of 1");
    auto no_root = host.chain();
    no_root.pop_back();
    expect_refused(Authority::create(host.key_copy(), std::move(no_root)), "no root");
    auto wrong_root = host.chain();
    wrong_root.pop_back();
    wrong_root.push_back(other.root.clone());
    expect_refused(Authority::create(host.key_copy(), std::move(wrong_root)), "not signed by");
    crypto::CertificateContent leaf;
    leaf.common_name = "no authority";
    leaf.public_key = must(host.key.public_key());
    leaf.not_before = wall_clock_seconds();
    std::vector<crypto::Certificate> chain;
    chain.push_back(must(crypto::issue_certificate(leaf, host.root_key, &host.root)));
    chain.push_back(host.root.clone());
    expect_refused(Authority::create(host.key_copy(), std::move(chain)), "may not sign");
}

TEST(Authority, EndorsementCertificatesSayWhatTheProfileAsksFor) {
    TestAuthority host;
    auto const certificate = must(host.authority().issue_endorsement(ecc_key(), identity(), wall_clock_seconds()));
    EXPECT_EQ(certificate.subject(), "");
    EXPECT_EQ(certificate.issuer(), "CN=signs");
    EXPECT_EQ(certificate.not_after(), host.certificate.not_after());
    EXPECT_FALSE(certificate.is_authority());
    auto const text = must(certificate.describe());
    for (auto const* part : {"2.23.133.2.1=id:49424D00", "2.23.133.2.2=SW   TPM", "2.23.133.2.3=id:20191023",
                             "X509v3 Subject Alternative Name: critical", "2.23.133.8.1", "Key Agreement", "CA:FALSE",
                             "X509v3 Subject Directory Attributes", "X509v3 Authority Key Identifier"})
        EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
    EXPECT_EQ(text.find("Key Encipherment"), std::string::npos);
}

TEST(Authority, CertificatesLastAsLongAsTheAuthority) {
    TestAuthority host;
    auto const now = wall_clock_seconds();
    auto content = authority_content("short", host.key, 0);
    content.not_after = now + 1000;
    std::vector<crypto::Certificate> chain;
    chain.push_back(must(crypto::issue_certificate(content, host.root_key, &host.root)));
    chain.push_back(host.root.clone());
    auto const authority = must(Authority::create(host.key_copy(), std::move(chain)));
    EXPECT_EQ(must(authority.issue_endorsement(ecc_key(), identity(), now)).not_after(), now + 1000);
    auto const late = authority.issue_endorsement(ecc_key(), identity(), now + 1001);
    ASSERT_FALSE(late);
    EXPECT_NE(late.error().message().find("expired"), std::string::npos) << late.error().message();
}

TEST(Authority, PlatformCertificatesNameTheirHolderAndAreSigned) {
    TestAuthority host;
    auto const authority = host.authority();
    auto const now = wall_clock_seconds();
    auto const holder = must(authority.issue_endorsement(ecc_key(), identity(), now));
    auto const vm = Uuid(Uuid::Storage{std::byte{7}});
    auto const der = must(authority.issue_platform(holder, vm, now));
    auto const parsed = must(parse_platform_certificate(der));
    EXPECT_EQ(parsed.platform_serial, vm.to_string());
    EXPECT_EQ(parsed.manufacturer, "Coffer");
    EXPECT_EQ(parsed.not_before, now);
    EXPECT_EQ(parsed.not_after, crypto::k_no_expiry);
    auto const holder_serial = must(holder.serial_number()); // tag and length before the number
    EXPECT_TRUE(std::equal(parsed.holder_serial.begin(), parsed.holder_serial.end(), holder_serial.begin() + 2,
                           holder_serial.end()));
    EXPECT_TRUE(host.certificate.verifies(parsed.signed_part, parsed.signature));
    EXPECT_FALSE(host.root.verifies(parsed.signed_part, parsed.signature));
    auto changed = parsed.signed_part;
    changed.back() ^= std::byte{1};
    EXPECT_FALSE(host.certificate.verifies(changed, parsed.signature));
    for (size_t size = 0; size < der.size(); ++size)
        EXPECT_FALSE(parse_platform_certificate(Bytes(der).first(size))) << size;
}

} // namespace
} // namespace coffer::vmm::tests
