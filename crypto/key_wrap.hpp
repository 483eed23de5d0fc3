// AES key wrap with padding, KWP (RFC 5649; NIST SP 800-38F section 6.3).
#pragma once

#include "base/bytes.hpp"
#include "crypto/keys.hpp"

namespace coffer::crypto {

// 8 bytes longer than the key, for keys of a multiple of 8 bytes. It has no additional data: whoever stores it
// authenticates what stands beside it.
Result<ByteVector> kwp_wrap(KeyEncryptionKey const& kek, BundleKey const& key);

// Integrity where the KEK is another one or the bytes were changed.
Result<BundleKey> kwp_unwrap(KeyEncryptionKey const& kek, Bytes wrapped);

namespace detail {
// Keys of 16, 24 and 32 bytes and data of 1 to 4096 bytes, as third-party vectors have it.
Result<ByteVector> kwp_wrap(Bytes kek, Bytes data);
Result<SecretBytes> kwp_unwrap(Bytes kek, Bytes wrapped);
} // namespace detail

} // namespace coffer::crypto
