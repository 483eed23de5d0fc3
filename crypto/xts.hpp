// AES-256 in XTS mode over 4096-byte data units (IEEE 1619-2018; NIST SP 800-38E). XTS hides content and does not
// protect it against change: every user in this project adds a MAC.
#pragma once

#include "base/bytes.hpp"
#include "crypto/keys.hpp"

struct evp_cipher_ctx_st;

namespace coffer::crypto {

constexpr size_t k_xts_unit_size = 4096;

// Not thread-safe: one object a thread.
class XtsCipher {
public:
    // InvalidArgument where the key's halves are equal.
    static Result<XtsCipher> create(XtsKey const& key);

    XtsCipher(XtsCipher&& other) noexcept
        : m_encrypt(std::exchange(other.m_encrypt, nullptr)), m_decrypt(std::exchange(other.m_decrypt, nullptr)) {}
    XtsCipher& operator=(XtsCipher&& other) noexcept {
        std::swap(m_encrypt, other.m_encrypt);
        std::swap(m_decrypt, other.m_decrypt);
        return *this;
    }
    ~XtsCipher();

    // `from` and `to` have the same size, 16 bytes to 16 MiB (one data unit; files use k_xts_unit_size), and are the
    // same memory or do not overlap. The tweak is the unit's number as 128 bits, little-endian (IEEE 1619 5.1).
    Result<void> encrypt_unit(uint64_t unit, Bytes from, MutBytes to);
    Result<void> decrypt_unit(uint64_t unit, Bytes from, MutBytes to);

private:
    XtsCipher() = default;
    static Result<void> run(evp_cipher_ctx_st* context, uint64_t unit, Bytes from, MutBytes to);

    evp_cipher_ctx_st* m_encrypt = nullptr;
    evp_cipher_ctx_st* m_decrypt = nullptr;
};

} // namespace coffer::crypto
