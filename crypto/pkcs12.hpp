// PKCS#12 (RFC 7292) as a safe for secrets: one encrypted safe of secret bags (section 4.2.5), PBES2 with AES-256-CBC
// and PBKDF2-HMAC-SHA-256 (RFC 8018), and the MAC over it (RFC 7292 appendix B) at as many iterations as the
// encryption: at OpenSSL's usual 2048 it would be the cheap way to guess the password. Not thread-safe: object
// identifiers are registered with OpenSSL.
#pragma once

#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "crypto/secret.hpp"

namespace coffer::crypto {

constexpr size_t k_pkcs12_max_file = size_t{64} << 10;
constexpr size_t k_pkcs12_max_bags = 256;
constexpr size_t k_pkcs12_max_secret = 64;
constexpr uint32_t k_pkcs12_iterations = 600'000;

struct Pkcs12Secret {
    std::string name;     // friendlyName, UTF-8
    ByteVector local_key; // localKeyId
    SecretBytes value;    // at most k_pkcs12_max_secret bytes
};

// `type` is the object identifier of the secrets in dotted form. InvalidArgument for an empty password.
Result<ByteVector> seal_pkcs12(std::string const& type, std::vector<Pkcs12Secret> const& secrets,
                               SecretBytes const& password);

// What seal_pkcs12() made. Corrupt where the file is no PKCS#12 or more than this one looks into; Unsupported where it
// is protected in another way, or would take more than 10 million iterations; KeyUnavailable where the password is
// wrong or the file was changed. Bags of another kind or type are Unsupported too.
Result<std::vector<Pkcs12Secret>> open_pkcs12(std::string const& type, Bytes file, SecretBytes const& password);

namespace detail {
// What open_pkcs12() does before it uses the password: the iterations that opening would take.
Result<uint64_t> check_pkcs12(Bytes file);
// What it does behind the password: a DER sequence of safe bags, not authenticated.
Result<std::vector<Pkcs12Secret>> read_safe_bags(std::string const& type, Bytes der);
} // namespace detail

} // namespace coffer::crypto
