// DER, and certificates that are made with it and read back by OpenSSL.
#include "crypto/der.hpp"
#include "crypto/hash.hpp"
#include "tests/unit/ca/ca_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

namespace der = crypto::der;

ByteVector hex(std::string_view text) {
    ByteVector bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2)
        bytes.push_back(static_cast<std::byte>(std::stoul(std::string(text.substr(i, 2)), nullptr, 16)));
    return bytes;
}

TEST(Der, ElementsAreAsX690HasThem) {
    EXPECT_EQ(der::oid("2.100.3"), hex("0603813403")); // X.690 8.19.5
    EXPECT_EQ(der::oid("2.23.133.8.1"), hex("06056781050801"));
    EXPECT_EQ(der::oid("1.2.840.113549.1.1.11"), hex("06092a864886f70d01010b"));
    EXPECT_EQ(der::boolean(true), hex("0101ff"));
    EXPECT_EQ(der::integer(0), hex("020100"));
    EXPECT_EQ(der::integer(127), hex("02017f"));
    EXPECT_EQ(der::integer(128), hex("02020080"));
    EXPECT_EQ(der::integer(65537), hex("0203010001"));
    EXPECT_EQ(der::integer(Bytes(hex("00000080"))), hex("02020080"));
    EXPECT_EQ(der::bits(hex("a5")), hex("030200a5"));
    EXPECT_EQ(der::utf8("id"), hex("0c026964"));
    EXPECT_EQ(der::set_of({hex("0101ff"), hex("010100")}), hex("3106010100"
                                                               "0101ff"));
    EXPECT_EQ(der::sequence({}), hex("3000"));
}

TEST(Der, LengthsTakeAsFewOctetsAsTheyNeed) {
    for (auto [size, head] : {std::pair<size_t, char const*>{127, "047f"},
                              {128, "048180"},
                              {255, "0481ff"},
                              {256, "04820100"},
                              {65536, "0483010000"}}) {
        auto const element = der::octets(ByteVector(size));
        auto const expected = hex(head);
        ASSERT_EQ(element.size(), expected.size() + size);
        EXPECT_TRUE(std::equal(expected.begin(), expected.end(), element.begin())) << size;
    }
}

TEST(Der, TimesHaveTwoDigitsOfTheYearUntil2049) {
    EXPECT_EQ(der::certificate_time(0), der::element(der::UtcTime, as_bytes("700101000000Z")));
    EXPECT_EQ(der::certificate_time(2524607999), der::element(der::UtcTime, as_bytes("491231235959Z")));
    EXPECT_EQ(der::certificate_time(2524608000), der::element(der::GeneralizedTime, as_bytes("20500101000000Z")));
    EXPECT_EQ(der::generalized_time(crypto::k_no_expiry),
              der::element(der::GeneralizedTime, as_bytes("99991231235959Z")));
}

TEST(Hash, GivesTheStandardsExamples) {
    using crypto::HashAlgorithm;
    // FIPS 180-4's examples for "abc".
    EXPECT_EQ(must(crypto::hash(HashAlgorithm::Sha1, {as_bytes("a"), as_bytes("bc")})),
              hex("a9993e364706816aba3e25717850c26c9cd0d89d"));
    EXPECT_EQ(must(crypto::hash(HashAlgorithm::Sha256, {as_bytes("abc")})),
              hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    EXPECT_EQ(must(crypto::hash(HashAlgorithm::Sha384, {as_bytes("abc")})),
              hex("cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7"));
    EXPECT_EQ(must(crypto::hash(HashAlgorithm::Sha512, {as_bytes("abc")})),
              hex("ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d"
                  "4423643ce80e2a9ac94fa54ca49f"));
}

TEST(Certificates, AreReadBackAsTheyWereMade) {
    TestAuthority host;
    EXPECT_EQ(host.certificate.subject(), "CN=signs");
    EXPECT_EQ(host.certificate.issuer(), "CN=root");
    EXPECT_EQ(host.certificate.not_after(), crypto::k_no_expiry);
    EXPECT_LT(host.certificate.not_before(), wall_clock_seconds());
    EXPECT_TRUE(host.root.is_self_signed());
    EXPECT_FALSE(host.certificate.is_self_signed());
    EXPECT_TRUE(host.certificate.is_authority());
    EXPECT_TRUE(host.certificate.is_signed_by(host.root));
    EXPECT_FALSE(host.root.is_signed_by(host.certificate));
    EXPECT_TRUE(host.certificate.has_key(host.key));
    EXPECT_FALSE(host.certificate.has_key(host.root_key));
    EXPECT_EQ(host.certificate.key_identifier().size(), 20U);
    EXPECT_NE(host.certificate.serial(), host.root.serial());
}

TEST(Certificates, PemTextsAreReadWhole) {
    TestAuthority host;
    auto const text = must(host.certificate.to_pem()) + "some words\n" + must(host.root.to_pem());
    auto const parsed = must(crypto::Certificate::parse_pem(text));
    ASSERT_EQ(parsed.size(), 2U);
    EXPECT_EQ(parsed[1].subject(), "CN=root");
    EXPECT_TRUE(must(crypto::Certificate::parse_pem("nothing here")).empty());
    auto broken = must(host.root.to_pem());
    broken[broken.size() / 2] = '*';
    EXPECT_FALSE(crypto::Certificate::parse_pem(broken));
}

TEST(Certificates, WhatIsNoneIsRefused) {
    TestAuthority host;
    auto der = must(host.root.to_der());
    for (size_t size = 0; size < der.size(); ++size)
        EXPECT_FALSE(crypto::Certificate::parse_der(Bytes(der).first(size))) << size;
    der.push_back(std::byte{0});
    EXPECT_FALSE(crypto::Certificate::parse_der(der)) << "bytes behind it";
}

TEST(Certificates, ChainsAreChecked) {
    TestAuthority host;
    TestAuthority other;
    auto const chain = host.chain();
    auto const now = wall_clock_seconds();
    crypto::CertificateContent content;
    content.common_name = "leaf";
    content.public_key = must(other.key.public_key());
    content.not_before = now;
    content.not_after = now + 100;
    auto const leaf = must(crypto::issue_certificate(content, host.key, &host.certificate));
    EXPECT_TRUE(crypto::verify_chain(leaf, chain, now));
    EXPECT_FALSE(crypto::verify_chain(leaf, chain, now + 101)) << "expired";
    EXPECT_FALSE(crypto::verify_chain(leaf, chain, now - 1)) << "not yet valid";
    auto const foreign = other.chain();
    EXPECT_FALSE(crypto::verify_chain(leaf, foreign, now)) << "another root";
    // An authority below one that may have none below it.
    auto const deeper =
        must(crypto::issue_certificate(authority_content("deeper", other.key, 0), host.key, &host.certificate));
    auto const last = must(crypto::issue_certificate(content, other.key, &deeper));
    std::vector<crypto::Certificate> three;
    three.push_back(deeper.clone());
    three.push_back(host.certificate.clone());
    three.push_back(host.root.clone());
    EXPECT_FALSE(crypto::verify_chain(last, three, now)) << "the path is too long";
}

// Made for this test by openssl genpkey.
constexpr std::string_view k_rsa_1024 = "-----BEGIN PRIVATE KEY-----\n"
                                        "MIICdwIBADANBgkqhkiG9w0BAQEFAASCAmEwggJdAgEAAoGBALbz5jTWoYyPCJMk\n"
                                        "ts8xE4RteQ51IO4tPE6Fk9bIFNipq5NiyLUC6D9dSxGPP2oy2PdNELxwd2TiKgZB\n"
                                        "0evdBQDvEDiD3buu2OG6dRr08w+EvrpXjGVx+hqm6qP3Uzj/AC3bnb5UgZ1cAttj\n"
                                        "o/mQ+R1Xl2Xvb0OOSUZQvd5RN8XJAgMBAAECgYA1BgcoNTRo+mNv0eoxrnWLofa9\n"
                                        "2/CJVw7tawVn8GEqUjJp6u1kmM0a4D0Lf8rPSqFbOziohKf10x5+5cCjbVEvcFxb\n"
                                        "XTtFED3WXE7d+lG2MyCQDbdFo70ZGKCR3uIsqLhdmvUk0ObM9jodi6lUhLiHoQ7g\n"
                                        "ombEkXKx7BE9gHIE6QJBAOfFT9i1Z6Yx9KQ1YWl2M9cWhG0moOMET4RL1maO4XwF\n"
                                        "/6/QTHyFAOzAnFGpeIo09I9xBcUeGEGElpNHzJfNABcCQQDKFBx7u8zGmRbyivRt\n"
                                        "b6SK0d5VC0kdJHhGzLO/xwRCgw7Unfp7gZz8oLrT4yhlEhxqJd4c5q4q8tfryF8Q\n"
                                        "oDUfAkEAohLbnDp2ycRjRDVD8mDDLaTEZCPAHCBWjrgNrNg7m+QCAesSoXzMwcKL\n"
                                        "TZvJ/DO91VT+6PH7mk1ikomB66FibwJBAISqGVz+GNzUymTm5rslzT85sp3gb9qL\n"
                                        "A89vOh6QOHK1+bmKEVSd7gNIPf83JWDdN/xT6fLNWtBlZ22quQaANv8CQHaoZ3xy\n"
                                        "h6KqlK9RzYQ3K8+Dalo8Eo4C5kFrf5GTBGhfFtRxtwr68+kOTXHQO574NrwUdzfj\n"
                                        "kjkKGL8nYqPIH6E=\n"
                                        "-----END PRIVATE KEY-----\n";
constexpr std::string_view k_ed25519 = "-----BEGIN PRIVATE KEY-----\n"
                                       "MC4CAQAwBQYDK2VwBCIEIMKfCDDxiWksuNhIkue6gjYydpQ/iNQt2R66sH7zPe2O\n"
                                       "-----END PRIVATE KEY-----\n";
constexpr std::string_view k_encrypted = // P-256
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAjfESkwKEQohAICCAAw\n"
    "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEGcZvwlgb9FnWvPKyibJMmAEgZA1\n"
    "N7GPA6DuhhQWjZqIeqnuyqF0IFFKM3ILvK02FtJKMeGbSfFuAgAOx+gvhGcvGGxy\n"
    "4UyaBRZ1+Q+IoQrwzXUxGl22IV3Fpj4vlIvIT8DCSP1PQRG6amtoY5zm/rMDdahN\n"
    "uzseJ3oA2TLkolGoTYL9ypkEJ/vpUcA2InFIpYiWWH5SFMx9V1DPhjPCQMCIodg=\n"
    "-----END ENCRYPTED PRIVATE KEY-----\n";

TEST(SigningKeys, OnlyStrongOnesAreTaken) {
    for (std::string_view text :
         {std::string_view(""), std::string_view("no key"), k_rsa_1024, k_ed25519, k_encrypted}) {
        auto key = crypto::SigningKey::parse_pem(crypto::SecretBytes::copy_of(as_bytes(text)));
        ASSERT_FALSE(key);
        EXPECT_EQ(key.error().code(), ErrorCode::InvalidArgument);
    }
    EXPECT_FALSE(crypto::SigningKey::parse_der(ByteVector(40)));
}

} // namespace
} // namespace coffer::vmm::tests
