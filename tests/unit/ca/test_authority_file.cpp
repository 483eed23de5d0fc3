// The authority's file: sealed keys, and every change of it found.
#include "tests/unit/ca/ca_fixture.hpp"
#include "vmm/ca/authority_file.hpp"

namespace coffer::vmm::tests {
namespace {

class AuthorityFile : public testing::Test {
protected:
    void SetUp() override {
        m_header.provider = Uuid(Uuid::Storage{std::byte{1}});
        m_header.key_id = "1/some-key";
        m_header.wrapped_key = ByteVector(40, std::byte{2});
        m_header.written = 1234;
        m_header.chain = {must(m_host.certificate.to_der()), must(m_host.root.to_der())};
        m_keys.signing = must(m_host.key.to_der());
        m_keys.root = must(m_host.root_key.to_der());
        m_file = must(seal_authority(m_header, m_keys, m_key));
    }
    Result<AuthorityKeys> open(Bytes file, crypto::BundleKey const& key) {
        auto parsed = TRY(parse_authority(file, "/ca/authority"));
        return open_authority(parsed, key, "/ca/authority");
    }

    TestAuthority m_host;
    crypto::BundleKey m_key = must(crypto::BundleKey::random());
    AuthorityHeader m_header;
    AuthorityKeys m_keys;
    ByteVector m_file;
};

bool same(crypto::SecretBytes const& a, crypto::SecretBytes const& b) {
    return std::ranges::equal(a.expose(), b.expose());
}

TEST_F(AuthorityFile, GivesBackWhatWasSealed) {
    auto const parsed = must(parse_authority(m_file, "/ca/authority"));
    EXPECT_EQ(parsed.header.key_id, "1/some-key");
    EXPECT_EQ(parsed.header.chain, m_header.chain);
    auto const keys = must(open(m_file, m_key));
    EXPECT_TRUE(same(keys.signing, m_keys.signing));
    EXPECT_TRUE(same(keys.root, m_keys.root));
}

TEST_F(AuthorityFile, HoldsNoKeyInTheClear) {
    for (auto const* secret : {&m_keys.signing, &m_keys.root}) {
        // The private number alone: the public key, which is in the certificates too, stands in PKCS #8 as well.
        auto const number = secret->expose().subspan(35, 48);
        EXPECT_EQ(std::search(m_file.begin(), m_file.end(), number.begin(), number.end()), m_file.end());
    }
    auto again = must(seal_authority(m_header, m_keys, m_key));
    EXPECT_FALSE(std::equal(again.end() - 64, again.end(), m_file.end() - 64)) << "a fresh salt each time";
}

TEST_F(AuthorityFile, EveryChangeIsFound) {
    for (size_t at = 0; at < m_file.size(); ++at) {
        auto changed = m_file;
        changed[at] ^= std::byte{0x10};
        auto const opened = open(changed, m_key);
        ASSERT_FALSE(opened) << at;
        EXPECT_EQ(opened.error().code(), ErrorCode::Integrity) << at;
        EXPECT_NE(opened.error().message().find("/ca/authority"), std::string::npos) << at;
    }
    for (size_t size = 0; size < m_file.size(); ++size) ASSERT_FALSE(open(Bytes(m_file).first(size), m_key)) << size;
    auto longer = m_file;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(open(longer, m_key));
    EXPECT_FALSE(open(m_file, must(crypto::BundleKey::random())));
}

} // namespace
} // namespace coffer::vmm::tests
