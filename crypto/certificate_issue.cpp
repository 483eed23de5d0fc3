// Making certificates and requests: encoded here, and read back by OpenSSL.
#include <algorithm>

#include <openssl/pem.h>

#include "crypto/certificate.hpp"
#include "crypto/der.hpp"
#include "crypto/hash.hpp"
#include "crypto/openssl.hpp"
#include "crypto/random.hpp"

namespace coffer::crypto {

namespace {

// RFC 5280, 4.2.1 and 4.1.2.4.
constexpr std::string_view k_oid_subject_key_identifier = "2.5.29.14";
constexpr std::string_view k_oid_key_usage = "2.5.29.15";
constexpr std::string_view k_oid_subject_alternative_name = "2.5.29.17";
constexpr std::string_view k_oid_basic_constraints = "2.5.29.19";
constexpr std::string_view k_oid_authority_key_identifier = "2.5.29.35";
constexpr std::string_view k_oid_common_name = "2.5.4.3";
constexpr std::string_view k_oid_extension_request = "1.2.840.113549.1.9.14"; // RFC 2985, 5.4.2

ByteVector name(std::string_view common_name) {
    if (common_name.empty()) return der::sequence({});
    auto const attribute = der::sequence({der::oid(k_oid_common_name), der::utf8(common_name)});
    return der::sequence({der::set_of({attribute})});
}

ByteVector encode(CertificateExtension const& extension, bool critical) {
    auto const flag = der::boolean(true);
    return der::sequence({der::oid(extension.oid), critical ? Bytes(flag) : Bytes(), der::octets(extension.value)});
}

// SHA-1 of the key's bits, as RFC 5280 4.2.1.2 (1) has it: an identifier, which proves nothing.
Result<ByteVector> key_identifier(Bytes public_key) {
    auto const* at = uchars(public_key);
    std::unique_ptr<X509_PUBKEY, FreeBy<X509_PUBKEY_free>> const parsed(
        ::d2i_X509_PUBKEY(nullptr, &at, static_cast<long>(public_key.size())));
    unsigned char const* bits = nullptr;
    int size = 0;
    if (!parsed || ::X509_PUBKEY_get0_param(nullptr, &bits, &size, nullptr, parsed.get()) != 1)
        return openssl_error("cannot read a public key");
    return hash(HashAlgorithm::Sha1, {std::as_bytes(std::span(bits, static_cast<size_t>(size)))});
}

Result<ByteVector> signed_sequence(Bytes content, SigningKey const& key) {
    auto const signature = TRY(key.sign(content));
    return der::sequence({content, key.algorithm(), der::bits(signature)});
}

} // namespace

Result<ByteVector> random_serial() {
    std::array<std::byte, 16> serial{};
    TRY(random_bytes(serial));
    serial[0] |= std::byte{0x40}; // positive in any case
    serial[0] &= std::byte{0x7F};
    return der::integer(Bytes(serial));
}

Result<Certificate> issue_certificate(CertificateContent const& content, SigningKey const& key,
                                      Certificate const* issuer) {
    auto const subject = name(content.common_name);
    auto const subject_key = TRY(key_identifier(content.public_key));
    ByteVector extensions;
    for (auto const& extension : content.extensions) {
        // A certificate without a subject is about whoever the alternative name names (RFC 5280, 4.1.2.6).
        bool const stands_for_subject = content.common_name.empty() && extension.oid == k_oid_subject_alternative_name;
        append(extensions, encode(extension, extension.critical || stands_for_subject));
    }
    append(extensions, encode({k_oid_subject_key_identifier, false, der::octets(subject_key)}, false));
    auto const issuer_key = issuer ? issuer->key_identifier() : subject_key;
    if (!issuer_key.empty()) {
        auto const identifier = der::sequence({der::element(der::implicit(0), issuer_key)});
        append(extensions, encode({k_oid_authority_key_identifier, false, identifier}, false));
    }
    auto const signed_part = der::sequence({
        der::element(der::constructed(0), der::integer(2)), // version 3
        TRY(random_serial()),
        key.algorithm(),
        issuer ? TRY(issuer->subject_name()) : subject,
        der::sequence({der::certificate_time(content.not_before), der::certificate_time(content.not_after)}),
        subject,
        content.public_key,
        der::element(der::constructed(3), der::element(der::Sequence, extensions)),
    });
    return Certificate::parse_der(TRY(signed_sequence(signed_part, key)));
}

std::vector<CertificateExtension> authority_extensions(unsigned path_length) {
    std::vector<CertificateExtension> extensions;
    extensions.push_back(
        {k_oid_basic_constraints, true, der::sequence({der::boolean(true), der::integer(path_length)})});
    // keyCertSign and cRLSign, bits 5 and 6; the last bit is not used.
    std::array const usage{std::byte{1}, std::byte{0x06}};
    extensions.push_back({k_oid_key_usage, true, der::element(der::BitString, usage)});
    return extensions;
}

Result<std::string> make_request(std::string const& common_name, SigningKey const& key) {
    ByteVector extensions;
    for (auto const& extension : authority_extensions(0)) append(extensions, encode(extension, extension.critical));
    auto const wanted =
        der::sequence({der::oid(k_oid_extension_request), der::set_of({der::element(der::Sequence, extensions)})});
    auto const content = der::sequence(
        {der::integer(0), name(common_name), TRY(key.public_key()), der::element(der::constructed(0), wanted)});
    auto const request = TRY(signed_sequence(content, key));
    return to_pem("CERTIFICATE REQUEST", request);
}

Result<std::string> to_pem(char const* label, Bytes der) {
    std::unique_ptr<BIO, FreeBy<BIO_free_all>> const bio(::BIO_new(::BIO_s_mem()));
    char* text = nullptr;
    if (!bio || ::PEM_write_bio(bio.get(), label, "", uchars(der), static_cast<long>(der.size())) <= 0)
        return openssl_error("cannot write PEM");
    auto const size = BIO_get_mem_data(bio.get(), &text);
    return std::string(text, static_cast<size_t>(size));
}

} // namespace coffer::crypto
