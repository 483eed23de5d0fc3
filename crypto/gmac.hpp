// AES-256-GMAC (NIST SP 800-38D): tags of 16 bytes.
//
// A nonce that is used twice under a key gives the key away. So this is for files that are written once, where a unit's
// number is its nonce and the key is the file's own.
#pragma once

#include "crypto/keys.hpp"

struct evp_cipher_ctx_st;

namespace coffer::crypto {

// Not thread-safe: one object a thread.
class Gmac {
public:
    static constexpr size_t k_tag_size = 16;
    using Tag = std::array<std::byte, k_tag_size>;

    static Result<Gmac> create(AeadKey const& key);

    Gmac(Gmac&& other) noexcept : m_context(std::exchange(other.m_context, nullptr)) {}
    Gmac& operator=(Gmac&& other) noexcept {
        std::swap(m_context, other.m_context);
        return *this;
    }
    ~Gmac();

    // The nonce is `number` in 96 bits, big-endian. At most 1 GiB of data.
    Result<Tag> compute(uint64_t number, Bytes data);

private:
    Gmac() = default;

    evp_cipher_ctx_st* m_context = nullptr;
};

} // namespace coffer::crypto
