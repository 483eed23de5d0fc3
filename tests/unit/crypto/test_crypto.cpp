// What the vectors do not show: refusals, construction of the SP 800-108 input, and secret memory.
#include <fstream>
#include <sstream>

#include <gtest/gtest.h>
#include <openssl/crypto.h>

#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"
#include "crypto/key_wrap.hpp"
#include "crypto/mac.hpp"
#include "crypto/openssl.hpp"
#include "crypto/random.hpp"
#include "crypto/xts.hpp"
#include "tests/unit/crypto/vectors.hpp"

namespace coffer::crypto {
namespace {

using tests::to_vector;

TEST(SecretBytes, LiesInLockedMemoryThatIsLeftOutOfDumps) {
    auto secret = SecretBytes::random(32);
    ASSERT_TRUE(secret);
    auto const* data = secret->expose().data();
    ASSERT_EQ(CRYPTO_secure_allocated(data), 1);
    // VmFlags of the mapping that holds it: "lo" is locked, "dd" is do-not-dump (proc(5)).
    auto address = reinterpret_cast<uintptr_t>(data);
    std::ifstream smaps("/proc/self/smaps");
    bool inside = false;
    std::string flags;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long first = 0;
        unsigned long last = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &last) == 2)
            inside = address >= first && address < last;
        else if (inside && line.starts_with("VmFlags:"))
            flags = line + " ";
    }
    EXPECT_NE(flags.find(" lo "), std::string::npos) << flags;
    EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
}

TEST(SecretBytes, IsWipedWhenGivenBack) {
    auto secret = SecretBytes::copy_of(as_bytes("0123456789abcdef0123456789abcdef"));
    auto const* data = secret.expose().data();
    secret.wipe();
    EXPECT_TRUE(secret.empty());
    // The heap itself stays mapped; only its free list is in the first bytes of a free block.
    std::string left(32, ' ');
    std::memcpy(left.data(), data, left.size());
    EXPECT_EQ(left.find("89abcdef"), std::string::npos);
}

TEST(SecretBytes, MovedFromIsEmpty) {
    auto one = SecretBytes::copy_of(as_bytes("secret"));
    auto other = std::move(one);
    EXPECT_TRUE(one.empty());
    EXPECT_EQ(to_vector(other.expose()), to_vector(as_bytes("secret")));
}

TEST(Keys, AdoptTakesTheExactSizeOnly) {
    EXPECT_FALSE(BundleKey::adopt(SecretBytes(31)).has_value());
    EXPECT_FALSE(BundleKey::adopt(SecretBytes(33)).has_value());
    EXPECT_TRUE(BundleKey::adopt(SecretBytes(32)).has_value());
}

TEST(Xts, EqualHalvesAreRefused) {
    auto key = XtsKey::adopt(SecretBytes(64));
    auto cipher = XtsCipher::create(*key);
    ASSERT_FALSE(cipher);
    EXPECT_EQ(cipher.error().code(), ErrorCode::InvalidArgument);
}

TEST(Xts, TheSameUnitUnderAnotherNumberIsOtherCiphertext) {
    auto cipher = XtsCipher::create(*XtsKey::random());
    ASSERT_TRUE(cipher);
    ByteVector plain(k_xts_unit_size, std::byte{7});
    ByteVector first(plain.size());
    ByteVector second(plain.size());
    ASSERT_TRUE(cipher->encrypt_unit(1, plain, first));
    ASSERT_TRUE(cipher->encrypt_unit(2, plain, second));
    EXPECT_NE(first, second);
}

TEST(Gcm, AnyChangeIsRefused) {
    auto key = AeadKey::random();
    ASSERT_TRUE(key);
    auto aad = to_vector(as_bytes("header"));
    auto sealed = gcm_seal(*key, {}, aad, as_bytes("plaintext"));
    ASSERT_TRUE(sealed);
    for (size_t i = 0; i < sealed->size(); ++i) {
        auto changed = *sealed;
        changed[i] ^= std::byte{0x10};
        EXPECT_FALSE(gcm_open(*key, {}, aad, changed)) << i;
    }
    for (size_t i = 0; i < aad.size(); ++i) {
        auto changed = aad;
        changed[i] ^= std::byte{1};
        EXPECT_FALSE(gcm_open(*key, {}, changed, *sealed)) << i;
    }
    for (size_t size = 0; size < sealed->size(); ++size)
        EXPECT_FALSE(gcm_open(*key, {}, aad, Bytes(*sealed).first(size))) << size;
    EXPECT_FALSE(gcm_open(*AeadKey::random(), {}, aad, *sealed));
    EXPECT_TRUE(gcm_open(*key, {}, aad, *sealed));
}

TEST(KeyWrap, AnotherKekAndAnyChangeAreRefused) {
    auto kek = KeyEncryptionKey::random();
    auto key = BundleKey::random();
    auto wrapped = kwp_wrap(*kek, *key);
    ASSERT_TRUE(wrapped);
    EXPECT_EQ(wrapped->size(), 40U);
    auto opened = kwp_unwrap(*kek, *wrapped);
    ASSERT_TRUE(opened);
    EXPECT_EQ(to_vector(opened->expose()), to_vector(key->expose()));
    EXPECT_FALSE(kwp_unwrap(*KeyEncryptionKey::random(), *wrapped));
    for (size_t i = 0; i < wrapped->size(); ++i) {
        auto changed = *wrapped;
        changed[i] ^= std::byte{0x80};
        EXPECT_FALSE(kwp_unwrap(*kek, changed)) << i;
    }
    for (size_t size = 0; size < wrapped->size(); ++size)
        EXPECT_FALSE(kwp_unwrap(*kek, Bytes(*wrapped).first(size))) << size;
}

// A key of another size under a good KEK is no bundle key.
TEST(KeyWrap, AnotherSizeIsRefused) {
    auto kek = KeyEncryptionKey::random();
    ByteVector short_key(24, std::byte{1});
    auto wrapped = detail::kwp_wrap(kek->expose(), short_key);
    ASSERT_TRUE(wrapped);
    EXPECT_FALSE(kwp_unwrap(*kek, *wrapped));
}

TEST(Kbkdf, FixedInputIsLabelZeroContextLength) {
    auto key = SecretBytes::random(32);
    auto label = to_vector(as_bytes("label"));
    auto context = to_vector(as_bytes("context"));
    auto fixed = label;
    fixed.push_back(std::byte{0});
    append(fixed, context);
    std::array<std::byte, 4> bits{};
    store_be<uint32_t>(bits, 0, 256);
    append(fixed, bits);
    auto derived = kbkdf_hmac_sha256(key->expose(), label, context, 32);
    auto expected = detail::kbkdf_hmac_sha256_raw(key->expose(), fixed, 32);
    ASSERT_TRUE(derived);
    ASSERT_TRUE(expected);
    EXPECT_EQ(to_vector(derived->expose()), to_vector(expected->expose()));
}

TEST(Scrypt, CostFromAHostileFileIsBounded) {
    auto passphrase = SecretBytes::copy_of(as_bytes("x"));
    for (ScryptCost cost : {ScryptCost{40, 8, 1}, ScryptCost{17, 1u << 30, 1}, ScryptCost{17, 8, 1u << 30},
                            ScryptCost{0, 8, 1}, ScryptCost{17, 0, 1}, ScryptCost{17, 8, 0}}) {
        auto derived = scrypt(passphrase, as_bytes("salt"), cost, 32);
        ASSERT_FALSE(derived);
        EXPECT_EQ(derived.error().code(), ErrorCode::InvalidArgument);
    }
}

TEST(Hmac, OneObjectGivesTheSameAsFreshOnes) {
    auto key = MacKey::random();
    auto mac = HmacSha256::create(*key);
    ASSERT_TRUE(mac);
    for (int i = 0; i < 3; ++i) {
        auto digest = mac->compute({as_bytes("one"), as_bytes("two")});
        ASSERT_TRUE(digest);
        EXPECT_EQ(*digest, *detail::hmac_sha256(key->expose(), as_bytes("onetwo")));
        EXPECT_TRUE(*mac->verify({as_bytes("onetwo")}, *digest));
        EXPECT_FALSE(*mac->verify({as_bytes("onetwO")}, *digest));
        EXPECT_FALSE(*mac->verify({as_bytes("onetwo")}, Bytes(*digest).first(31)));
    }
}

// A second implementation: OpenSSL's own HMAC, for keys and messages around the sizes of SHA-256's blocks.
TEST(Hmac, IsThatOfOpenssl) {
    auto noise = SecretBytes::random(400);
    ASSERT_TRUE(noise);
    for (size_t key_size : {1u, 20u, 32u, 63u, 64u, 65u, 131u})
        for (size_t size : {0u, 1u, 55u, 56u, 63u, 64u, 65u, 119u, 120u, 128u, 200u}) {
            Bytes const key = noise->expose().first(key_size);
            Bytes const message = noise->expose().last(size);
            Digest expected;
            size_t length = 0;
            ASSERT_NE(EVP_Q_mac(nullptr, "HMAC", nullptr, "SHA256", nullptr, key.data(), key.size(), uchars(message),
                                message.size(), writable(expected), expected.size(), &length),
                      nullptr);
            ASSERT_EQ(length, expected.size());
            EXPECT_EQ(*detail::hmac_sha256(key, message), expected) << key_size << ' ' << size;
        }
}

TEST(Random, UuidsAreVersion4AndDiffer) {
    auto one = random_uuid();
    auto other = random_uuid();
    ASSERT_TRUE(one && other);
    EXPECT_NE(*one, *other);
    auto text = one->to_string();
    EXPECT_EQ(text[14], '4');
    EXPECT_TRUE(text[19] == '8' || text[19] == '9' || text[19] == 'a' || text[19] == 'b');
    EXPECT_EQ(Uuid::parse(text), *one);
}

} // namespace
} // namespace coffer::crypto
