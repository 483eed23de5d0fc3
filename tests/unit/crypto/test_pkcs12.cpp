// PKCS#12 safes: what is accepted, what is refused before any work, and what a wrong password gives.
#include <openssl/evp.h>
#include <openssl/pkcs12.h>

#include <gtest/gtest.h>

#include "crypto/pkcs12.hpp"

namespace coffer::crypto {
namespace {

constexpr char const* k_type = "2.25.1234567890123456789";

ByteVector to_vector(Bytes bytes) {
    return {bytes.begin(), bytes.end()};
}
SecretBytes secret(std::string_view text) {
    return SecretBytes::copy_of(as_bytes(text));
}
std::vector<Pkcs12Secret> two_secrets() {
    std::vector<Pkcs12Secret> secrets;
    secrets.push_back({"Schlüssel 🔑", ByteVector(20, std::byte{1}), secret("the first secret, of 32 bytes...")});
    secrets.push_back({"other", ByteVector(3, std::byte{2}), secret("short")});
    return secrets;
}
ByteVector sealed(std::string_view password = "pass word") {
    auto file = seal_pkcs12(k_type, two_secrets(), secret(password));
    EXPECT_TRUE(file) << file.error().message();
    return *file;
}

TEST(Pkcs12, OpensWhatItSealed) {
    auto opened = open_pkcs12(k_type, sealed(), secret("pass word"));
    ASSERT_TRUE(opened) << opened.error().message();
    auto const expected = two_secrets();
    ASSERT_EQ(opened->size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ((*opened)[i].name, expected[i].name);
        EXPECT_EQ((*opened)[i].local_key, expected[i].local_key);
        EXPECT_EQ(to_vector((*opened)[i].value.expose()), to_vector(expected[i].value.expose()));
    }
}

TEST(Pkcs12, HidesSecretsAndNames) {
    auto file = sealed();
    std::string text;
    for (std::byte b : file) text += static_cast<char>(b);
    for (auto const* hidden : {"the first secret", "short", "other"})
        EXPECT_EQ(text.find(hidden), std::string::npos) << hidden;
    EXPECT_NE(file, sealed()) << "salts are fresh";
}

TEST(Pkcs12, BothDerivationsTakeTheWholeNumberOfIterations) {
    EXPECT_EQ(*detail::check_pkcs12(sealed()), 2 * k_pkcs12_iterations);
}

TEST(Pkcs12, WrongPasswordAndOtherTypeAreRefused) {
    auto file = sealed();
    auto wrong = open_pkcs12(k_type, file, secret("pass wore"));
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::KeyUnavailable);
    auto type = open_pkcs12("2.25.99", file, secret("pass word"));
    ASSERT_FALSE(type);
    EXPECT_EQ(type.error().code(), ErrorCode::Unsupported);
    EXPECT_EQ(open_pkcs12(k_type, file, SecretBytes()).error().code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(seal_pkcs12(k_type, two_secrets(), SecretBytes()).error().code(), ErrorCode::InvalidArgument);
}

// A quarter of a second for each that gets as far as the password: samples. Truncations end before.
TEST(Pkcs12, ChangesAreRefused) {
    auto file = sealed();
    for (size_t size = 0; size < file.size(); ++size)
        EXPECT_FALSE(open_pkcs12(k_type, Bytes(file).first(size), secret("pass word"))) << size;
    for (size_t i : {file.size() / 4, file.size() / 3, file.size() / 2, file.size() * 3 / 4, file.size() - 10}) {
        auto changed = file;
        changed[i] ^= std::byte{4};
        EXPECT_FALSE(open_pkcs12(k_type, changed, secret("pass word"))) << i;
    }
    file.push_back(std::byte{0});
    EXPECT_FALSE(open_pkcs12(k_type, file, secret("pass word")));
}

struct FreePkcs12 {
    void operator()(PKCS12* file) const { PKCS12_free(file); }
};

// A file by OpenSSL alone, with the given ciphers and iterations. Those of the MAC are stated, not taken.
ByteVector foreign(int cipher, int iterations, int mac_iterations, EVP_MD const* digest) {
    STACK_OF(PKCS12_SAFEBAG)* bags = nullptr;
    unsigned char value[] = "value";
    if (OBJ_txt2nid("2.25.555") == NID_undef) OBJ_create("2.25.555", nullptr, nullptr);
    PKCS12_add_secret(&bags, OBJ_txt2nid("2.25.555"), value, 5);
    STACK_OF(PKCS7)* safes = nullptr;
    PKCS12_add_safe(&safes, bags, cipher, iterations, "pass");
    std::unique_ptr<PKCS12, FreePkcs12> file(PKCS12_add_safes(safes, 0));
    PKCS12_set_mac(file.get(), "pass", 4, nullptr, 0, 100, digest);
    ASN1_INTEGER const* stated = nullptr;
    PKCS12_get0_mac(nullptr, nullptr, nullptr, &stated, file.get());
    ASN1_INTEGER_set(const_cast<ASN1_INTEGER*>(stated), mac_iterations);
    unsigned char* der = nullptr;
    int const size = i2d_PKCS12(file.get(), &der);
    auto bytes = std::as_bytes(std::span(der, static_cast<size_t>(size)));
    ByteVector result(bytes.begin(), bytes.end());
    OPENSSL_free(der);
    sk_PKCS12_SAFEBAG_pop_free(bags, PKCS12_SAFEBAG_free);
    sk_PKCS7_pop_free(safes, PKCS7_free);
    return result;
}

TEST(Pkcs12, OtherProtectionIsRefusedWithoutWork) {
    auto refused = [](ByteVector const& file, std::string_view word) {
        auto checked = detail::check_pkcs12(file);
        ASSERT_FALSE(checked) << word;
        EXPECT_EQ(checked.error().code(), ErrorCode::Unsupported);
        EXPECT_NE(checked.error().message().find(word), std::string::npos) << checked.error().message();
    };
    EXPECT_TRUE(detail::check_pkcs12(foreign(NID_aes_256_cbc, 100, 100, EVP_sha256())));
    refused(foreign(-1, 100, 100, EVP_sha256()), "not encrypted");
    refused(foreign(NID_aes_128_cbc, 100, 100, EVP_sha256()), "AES-256-CBC");
    refused(foreign(NID_pbe_WithSHA1And3_Key_TripleDES_CBC, 100, 100, EVP_sha256()), "PBES2");
    refused(foreign(NID_aes_256_cbc, 100, 100, EVP_sha1()), "SHA-256");
}

// The numbers are patched into the file: to make one with so many iterations would take minutes.
TEST(Pkcs12, HostileIterationsAreRefused) {
    auto patch = [](ByteVector file, uint32_t from, uint32_t to, bool last) {
        // DER INTEGER of three bytes (0x02 0x03), as 600,000 is.
        ByteVector wanted = {std::byte{2}, std::byte{3}, std::byte(from >> 16 & 0xFF), std::byte(from >> 8 & 0xFF),
                             std::byte(from & 0xFF)};
        auto at = last ? std::find_end(file.begin(), file.end(), wanted.begin(), wanted.end())
                       : std::search(file.begin(), file.end(), wanted.begin(), wanted.end());
        EXPECT_NE(at, file.end());
        for (int i = 0; i < 3; ++i) at[2 + i] = std::byte(to >> (16 - 8 * i) & 0xFF);
        return file;
    };
    auto file = sealed();
    constexpr uint32_t k_negative = 0x800000;
    for (bool last : {false, true}) {
        EXPECT_TRUE(detail::check_pkcs12(patch(file, k_pkcs12_iterations, 0x7FFFFF, last))); // 8.4 million
        EXPECT_FALSE(detail::check_pkcs12(patch(file, k_pkcs12_iterations, k_negative, last)));
    }
    EXPECT_FALSE(detail::check_pkcs12(foreign(NID_aes_256_cbc, 100, 10'000'001, EVP_sha256())));
    EXPECT_FALSE(detail::check_pkcs12(ByteVector(k_pkcs12_max_file + 1, std::byte{0x30})));
}

} // namespace
} // namespace coffer::crypto
