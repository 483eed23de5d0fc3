// X.509 certificates and requests for them (RFC 5280, RFC 2986), by OpenSSL.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "crypto/signing_key.hpp"

struct x509_st;

namespace coffer::crypto {

constexpr size_t k_max_certificate = 16384; // bytes of DER

// The end of a validity that has none (RFC 5280, 4.1.2.5): 9999-12-31 23:59:59 UTC.
constexpr int64_t k_no_expiry = 253402300799;

class Certificate {
public:
    // Corrupt where it is no certificate, or bytes follow it.
    static Result<Certificate> parse_der(Bytes der);
    // All certificates of a PEM text; other blocks in it are skipped. Corrupt where one is malformed.
    static Result<std::vector<Certificate>> parse_pem(std::string_view text);

    Certificate(Certificate&&) noexcept = default;
    Certificate& operator=(Certificate&&) noexcept = default;
    Certificate clone() const; // shares what is never changed
    ~Certificate() = default;

    Result<ByteVector> to_der() const;
    Result<std::string> to_pem() const;
    // All of it, as `openssl x509 -text` prints it.
    Result<std::string> describe() const;

    std::string subject() const; // RFC 2253
    std::string issuer() const;
    std::string serial() const; // hexadecimal
    int64_t not_before() const; // seconds since 1970-01-01 UTC
    int64_t not_after() const;

    // DER: the subject's and issuer's Name, the serial number as INTEGER.
    Result<ByteVector> subject_name() const;
    Result<ByteVector> issuer_name() const;
    Result<ByteVector> serial_number() const;
    // Empty where the certificate has no subject key identifier.
    ByteVector key_identifier() const;
    Result<ByteVector> public_key() const; // SubjectPublicKeyInfo

    // Whether it may sign certificates: basicConstraints with CA, and keyCertSign where there is a key usage.
    bool is_authority() const;
    bool is_self_signed() const;
    bool has_key(SigningKey const& key) const;
    // Whether the issuer's key made its signature, and the names agree.
    bool is_signed_by(Certificate const& issuer) const;
    // Whether the issuer's key made a signature over `message`.
    bool verifies(Bytes message, Bytes signature) const;

    x509_st* native() const noexcept { return m_certificate.get(); }

private:
    explicit Certificate(std::shared_ptr<x509_st> certificate) : m_certificate(std::move(certificate)) {}

    std::shared_ptr<x509_st> m_certificate; // counted: never changed once it is here
};

// Checks that `leaf` chains to the last of `authorities` (nearest first), which is self-signed: names, signatures,
// basic constraints, path lengths, key usages and dates at `time`. Integrity, with OpenSSL's reason.
Result<void> verify_chain(Certificate const& leaf, std::span<Certificate const> authorities, int64_t time);

struct CertificateExtension {
    std::string_view oid; // dotted
    bool critical = false;
    ByteVector value; // DER
};

struct CertificateContent {
    ByteVector public_key;   // SubjectPublicKeyInfo
    std::string common_name; // empty: an empty subject, and the alternative name is critical
    int64_t not_before = 0;  // seconds since 1970-01-01 UTC
    int64_t not_after = k_no_expiry;
    std::vector<CertificateExtension> extensions; // beside the key identifiers, which are added
};

// An X.509 v3 certificate under a random serial number of 128 bits. `issuer` null: self-signed, and `content` has the
// key's own public key.
Result<Certificate> issue_certificate(CertificateContent const& content, SigningKey const& key,
                                      Certificate const* issuer);

// Extensions of an authority that signs `path_length` levels of authorities.
std::vector<CertificateExtension> authority_extensions(unsigned path_length);

// A PKCS #10 request in PEM for an authority's certificate.
Result<std::string> make_request(std::string const& common_name, SigningKey const& key);

// "-----BEGIN LABEL-----" and so on (RFC 7468).
Result<std::string> to_pem(char const* label, Bytes der);

// A positive serial number: 128 random bits.
Result<ByteVector> random_serial();

} // namespace coffer::crypto
