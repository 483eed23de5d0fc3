// SHA-256, HMAC-SHA-256 (RFC 2104, FIPS 198-1) and comparison of what they give.
#pragma once

#include <initializer_list>

#include "base/bytes.hpp"
#include "crypto/keys.hpp"

struct evp_mac_ctx_st;

namespace coffer::crypto {

constexpr size_t k_digest_size = 32;
using Digest = std::array<std::byte, k_digest_size>;

// Of the parts one behind the other.
Result<Digest> sha256(std::initializer_list<Bytes> parts);

// A keyed HMAC that is computed many times. Not thread-safe: one object a thread.
class HmacSha256 {
public:
    static Result<HmacSha256> create(MacKey const& key);

    HmacSha256(HmacSha256&& other) noexcept : m_context(std::exchange(other.m_context, nullptr)) {}
    HmacSha256& operator=(HmacSha256&& other) noexcept {
        std::swap(m_context, other.m_context);
        return *this;
    }
    ~HmacSha256();

    // Of the parts one behind the other.
    Result<Digest> compute(std::initializer_list<Bytes> parts);
    // Compares in constant time.
    Result<bool> verify(std::initializer_list<Bytes> parts, Bytes expected);

private:
    HmacSha256() = default;

    evp_mac_ctx_st* m_context = nullptr;
};

namespace detail {
// A key of any length, as third-party vectors have it.
Result<Digest> hmac_sha256(Bytes key, Bytes message);
} // namespace detail

// False where sizes differ; else takes the same time whatever the bytes are.
bool equal_in_constant_time(Bytes a, Bytes b) noexcept;

} // namespace coffer::crypto
