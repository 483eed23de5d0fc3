// AES-256-GCM with 96-bit nonces and 128-bit tags (NIST SP 800-38D).
#pragma once

#include "base/bytes.hpp"
#include "crypto/keys.hpp"

namespace coffer::crypto {

constexpr size_t k_gcm_nonce_size = 12;
constexpr size_t k_gcm_tag_size = 16;
using GcmNonce = std::array<std::byte, k_gcm_nonce_size>;

// Ciphertext with the tag behind it. A nonce must never be used twice under one key; the callers in this project take
// a fresh key for each message, and the nonce of zeros.
Result<ByteVector> gcm_seal(AeadKey const& key, GcmNonce const& nonce, Bytes aad, Bytes plaintext);

// Integrity where key, nonce, additional data, ciphertext or tag differ from what was sealed; no plaintext is given
// out then.
Result<SecretBytes> gcm_open(AeadKey const& key, GcmNonce const& nonce, Bytes aad, Bytes sealed);

} // namespace coffer::crypto
