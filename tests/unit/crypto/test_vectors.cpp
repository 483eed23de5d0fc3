// The primitives against vectors of third parties (tests/vectors).
#include <gtest/gtest.h>

#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"
#include "crypto/key_wrap.hpp"
#include "crypto/mac.hpp"
#include "crypto/xts.hpp"
#include "tests/unit/crypto/vectors.hpp"

namespace coffer::crypto {
namespace {

using tests::read_vectors;
using tests::to_vector;

template <class K>
K key_of(tests::Vector const& vector) {
    auto key = K::adopt(vector.secret("Key"));
    EXPECT_TRUE(key.has_value());
    return std::move(*key);
}

class Xts : public testing::TestWithParam<char const*> {};

TEST_P(Xts, EncryptsAndDecrypts) {
    for (auto const& vector : read_vectors(GetParam())) {
        auto cipher = XtsCipher::create(key_of<XtsKey>(vector));
        ASSERT_TRUE(cipher);
        auto plain = vector.bytes("Plain");
        auto expected = vector.bytes("Cipher");
        ByteVector out(plain.size());
        ASSERT_TRUE(cipher->encrypt_unit(vector.number("Unit"), plain, out));
        EXPECT_EQ(out, expected);
        ASSERT_TRUE(cipher->decrypt_unit(vector.number("Unit"), out, out));
        EXPECT_EQ(out, plain);
    }
}
INSTANTIATE_TEST_SUITE_P(Vectors, Xts, testing::Values("ieee1619_xts_aes256.txt", "nist_xts_aes256.txt"));

TEST(Gcm, NistVectors) {
    for (auto const& vector : read_vectors("nist_gcm_aes256.txt")) {
        auto key = key_of<AeadKey>(vector);
        GcmNonce nonce{};
        auto nonce_bytes = vector.bytes("Nonce");
        ASSERT_EQ(nonce_bytes.size(), nonce.size());
        std::memcpy(nonce.data(), nonce_bytes.data(), nonce.size());
        auto sealed = gcm_seal(key, nonce, vector.bytes("Aad"), vector.bytes("Plain"));
        ASSERT_TRUE(sealed);
        EXPECT_EQ(*sealed, vector.bytes("Sealed"));
        auto opened = gcm_open(key, nonce, vector.bytes("Aad"), *sealed);
        ASSERT_TRUE(opened);
        EXPECT_EQ(to_vector(opened->expose()), vector.bytes("Plain"));
    }
}

class KeyWrap : public testing::TestWithParam<char const*> {};

TEST_P(KeyWrap, WrapsAndUnwraps) {
    for (auto const& vector : read_vectors(GetParam())) {
        auto wrapped = detail::kwp_wrap(vector.bytes("Key"), vector.bytes("Plain"));
        ASSERT_TRUE(wrapped);
        EXPECT_EQ(*wrapped, vector.bytes("Cipher"));
        auto unwrapped = detail::kwp_unwrap(vector.bytes("Key"), *wrapped);
        ASSERT_TRUE(unwrapped);
        EXPECT_EQ(to_vector(unwrapped->expose()), vector.bytes("Plain"));
    }
}
INSTANTIATE_TEST_SUITE_P(Vectors, KeyWrap, testing::Values("rfc5649_kwp.txt", "nist_kwp_ae_256.txt"));

TEST(KeyWrapRefusal, NistVectors) {
    for (auto const& vector : read_vectors("nist_kwp_ad_256_fail.txt")) {
        auto unwrapped = detail::kwp_unwrap(vector.bytes("Key"), vector.bytes("Cipher"));
        ASSERT_FALSE(unwrapped);
        EXPECT_EQ(unwrapped.error().code(), ErrorCode::Integrity);
    }
}

TEST(Hmac, Rfc4231) {
    for (auto const& vector : read_vectors("rfc4231_hmac_sha256.txt")) {
        auto digest = detail::hmac_sha256(vector.bytes("Key"), vector.bytes("Message"));
        ASSERT_TRUE(digest);
        EXPECT_EQ(to_vector(*digest), vector.bytes("Mac"));
    }
}

TEST(Hkdf, Rfc5869) {
    for (auto const& vector : read_vectors("rfc5869_hkdf_sha256.txt")) {
        auto expected = vector.bytes("Output");
        auto info = vector.bytes("Info");
        std::string info_text;
        for (auto byte : info) info_text += static_cast<char>(byte);
        auto output = hkdf_sha256(vector.bytes("Key"), vector.bytes("Salt"), info_text, expected.size());
        ASSERT_TRUE(output);
        EXPECT_EQ(to_vector(output->expose()), expected);
    }
}

TEST(Kbkdf, NistVectors) {
    for (auto const& vector : read_vectors("nist_kbkdf_ctr_hmac_sha256.txt")) {
        auto expected = vector.bytes("Output");
        auto output = detail::kbkdf_hmac_sha256_raw(vector.bytes("Key"), vector.bytes("Fixed"), expected.size());
        ASSERT_TRUE(output);
        EXPECT_EQ(to_vector(output->expose()), expected);
    }
}

TEST(Scrypt, Rfc7914) {
    for (auto const& vector : read_vectors("rfc7914_scrypt.txt")) {
        auto expected = vector.bytes("Output");
        ScryptCost cost{static_cast<uint8_t>(vector.number("Log2N")), static_cast<uint32_t>(vector.number("R")),
                        static_cast<uint32_t>(vector.number("P"))};
        if (cost.log2_n == 20) continue; // 1 GiB of memory: not in the fast suite
        auto output = scrypt(vector.secret("Passphrase"), vector.bytes("Salt"), cost, expected.size());
        ASSERT_TRUE(output) << output.error().message();
        EXPECT_EQ(to_vector(output->expose()), expected);
    }
}

} // namespace
} // namespace coffer::crypto
