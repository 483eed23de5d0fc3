// The hash functions that TPMs and certificates use beside SHA-256 (crypto/mac.hpp). Thread-safe.
#pragma once

#include <initializer_list>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::crypto {

// FIPS 180-4.
enum class HashAlgorithm : uint8_t { Sha1, Sha256, Sha384, Sha512 };

// Of the parts one behind the other. SHA-1 is for what standards prescribe it for, and proves nothing.
Result<ByteVector> hash(HashAlgorithm algorithm, std::initializer_list<Bytes> parts);

} // namespace coffer::crypto
