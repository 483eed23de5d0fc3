// A private key that signs certificates. OpenSSL keeps its secret numbers in the secure heap (crypto/secret.hpp).
#pragma once

#include <utility>

#include "crypto/secret.hpp"

struct evp_pkey_st;

namespace coffer::crypto {

class SigningKey {
public:
    // ECC on P-384.
    static Result<SigningKey> generate();
    // PEM without passphrase: ECC on P-256, P-384 or P-521, or RSA of 2048 to 8192 bits. InvalidArgument for all else;
    // the message says what the key is.
    static Result<SigningKey> parse_pem(SecretBytes const& pem);
    // PKCS #8, as to_der() gives it. Corrupt where it is not.
    static Result<SigningKey> parse_der(Bytes der);

    SigningKey(SigningKey&& other) noexcept : m_key(std::exchange(other.m_key, nullptr)) {}
    SigningKey& operator=(SigningKey&& other) noexcept {
        std::swap(m_key, other.m_key);
        return *this;
    }
    ~SigningKey();

    Result<SecretBytes> to_der() const;
    // SubjectPublicKeyInfo (RFC 5280, 4.1.2.7).
    Result<ByteVector> public_key() const;
    // ECDSA or RSASSA-PKCS1-v1_5 with the hash that suits the key's strength (SP 800-57 Part 1, 5.6.2), and its
    // AlgorithmIdentifier in DER, as certificates name it.
    Result<ByteVector> sign(Bytes message) const;
    ByteVector algorithm() const;

    // For crypto/'s own sources.
    evp_pkey_st* native() const noexcept { return m_key; }

private:
    explicit SigningKey(evp_pkey_st* key) noexcept : m_key(key) {}

    evp_pkey_st* m_key = nullptr;
};

} // namespace coffer::crypto
