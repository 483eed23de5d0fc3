// The file of a certificate authority as bytes (docs/formats/authority.md). Pure functions; no file is touched.
#pragma once

#include <filesystem>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"
#include "crypto/secret.hpp"

namespace coffer::vmm {

enum class AuthorityOrigin : uint8_t {
    Own = 0,      // made on this host, root included
    Imported = 1, // the owner's
};

constexpr size_t k_authority_salt_size = 32;
constexpr size_t k_max_authority_header = 131072;
constexpr size_t k_max_authority_keys = 16384;
constexpr size_t k_authority_prefix_size = 64;
constexpr size_t k_max_authority_file = k_authority_prefix_size + k_max_authority_header + k_max_authority_keys;

// Readable without keys; authenticated once the bundle key is at hand.
struct AuthorityHeader {
    Uuid provider;
    std::string key_id;
    ByteVector wrapped_key;
    std::array<std::byte, k_authority_salt_size> salt{};
    int64_t written = 0; // seconds since 1970-01-01 UTC
    AuthorityOrigin origin = AuthorityOrigin::Own;
    std::vector<ByteVector> chain; // DER certificates, the signing authority's first, the root's last

    template <class V>
    void fields(V& v) {
        v.required(1, provider);
        v.required(2, key_id);
        v.required(3, wrapped_key);
        v.required(4, salt);
        v.required(5, written);
        v.required(6, origin);
        v.required(7, chain);
    }
};

// Private keys, PKCS #8.
struct AuthorityKeys {
    crypto::SecretBytes signing;
    crypto::SecretBytes root; // empty where this host does not have it
};

struct ParsedAuthority {
    AuthorityHeader header;
    Bytes authenticated; // into the parsed bytes
    Bytes sealed;
};
// Well-formed and undamaged, but not yet authentic. Integrity with a message that names `path`.
Result<ParsedAuthority> parse_authority(Bytes file, std::filesystem::path const& path);
// Integrity where the bundle key is another one or anything in the file was changed.
Result<AuthorityKeys> open_authority(ParsedAuthority const& parsed, crypto::BundleKey const& key,
                                     std::filesystem::path const& path);
// The whole file, under a salt that is made fresh and left in `header`.
Result<ByteVector> seal_authority(AuthorityHeader& header, AuthorityKeys const& keys, crypto::BundleKey const& key);

} // namespace coffer::vmm
