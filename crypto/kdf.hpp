// Key derivation: from keys (HKDF, KBKDF) and from passphrases (scrypt).
#pragma once

#include <string_view>

#include "base/bytes.hpp"
#include "crypto/keys.hpp"

namespace coffer::crypto {

// HKDF-SHA-256, extract and expand (RFC 5869).
Result<SecretBytes> hkdf_sha256(Bytes input_key, Bytes salt, std::string_view info, size_t size);

// KDF in counter mode with HMAC-SHA-256 (NIST SP 800-108r1 section 4.1): a 32-bit counter before the fixed input, which
// is label || 0x00 || context || [size in bits]32.
Result<SecretBytes> kbkdf_hmac_sha256(Bytes key, Bytes label, Bytes context, size_t size);

// Cost of scrypt (RFC 7914): 128 * r * N bytes of memory are used.
struct ScryptCost {
    uint8_t log2_n = 17;
    uint32_t r = 8;
    uint32_t p = 1;

    // At most 1 GiB of memory and 16 passes: what a hostile file can ask for.
    bool acceptable() const noexcept;
};
// InvalidArgument where the cost is not acceptable().
Result<SecretBytes> scrypt(SecretBytes const& passphrase, Bytes salt, ScryptCost cost, size_t size);

// HKDF straight to a key type.
template <class K>
Result<K> derive_key(Bytes input_key, Bytes salt, std::string_view info) {
    auto key = K::adopt(TRY(hkdf_sha256(input_key, salt, info, K::k_size)));
    COFFER_ASSERT(key.has_value());
    return std::move(*key);
}

namespace detail {
// The fixed input as a whole, as NIST's vectors have it.
Result<SecretBytes> kbkdf_hmac_sha256_raw(Bytes key, Bytes fixed_input, size_t size);
} // namespace detail

} // namespace coffer::crypto
