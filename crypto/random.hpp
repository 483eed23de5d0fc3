// Random bytes from OpenSSL's generators, which are seeded by the kernel. Thread-safe.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"

namespace coffer::crypto {

// For values that others may see: salts, identifiers.
Result<void> random_bytes(MutBytes to);
// For keys: a generator whose output is never seen outside of secrets (RAND_priv_bytes).
Result<void> random_private_bytes(MutBytes to);

// Version 4, variant 1 (RFC 4122 section 4.4).
Result<Uuid> random_uuid();

} // namespace coffer::crypto
