// How this folder's sources hold OpenSSL's objects and report its errors. Not for other folders.
#pragma once

#include <memory>
#include <string_view>

#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::crypto {

template <auto free_function>
struct FreeBy {
    template <class T>
    void operator()(T* object) const noexcept {
        free_function(object);
    }
};
using CipherPtr = std::unique_ptr<EVP_CIPHER, FreeBy<EVP_CIPHER_free>>;
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, FreeBy<EVP_CIPHER_CTX_free>>;
using MacPtr = std::unique_ptr<EVP_MAC, FreeBy<EVP_MAC_free>>;
using MacContext = std::unique_ptr<EVP_MAC_CTX, FreeBy<EVP_MAC_CTX_free>>;
using KdfPtr = std::unique_ptr<EVP_KDF, FreeBy<EVP_KDF_free>>;
using KdfContext = std::unique_ptr<EVP_KDF_CTX, FreeBy<EVP_KDF_CTX_free>>;

// Internal, with the reason of OpenSSL's last error; empties this thread's error queue.
Error openssl_error(std::string_view what);

// SAFETY: std::byte and unsigned char may alias any object ([basic.lval]) and have the same size and alignment.
inline unsigned char* writable(MutBytes bytes) noexcept {
    return reinterpret_cast<unsigned char*>(bytes.data());
}
// SAFETY: as above.
inline unsigned char const* uchars(Bytes bytes) noexcept {
    return reinterpret_cast<unsigned char const*>(bytes.data());
}

// A parameter that OpenSSL only reads, though its type is not const (OSSL_PARAM(3)).
inline OSSL_PARAM octets(char const* name, Bytes bytes) noexcept {
    static constinit std::byte empty{};
    auto* data = bytes.empty() ? &empty : const_cast<std::byte*>(bytes.data());
    return ::OSSL_PARAM_construct_octet_string(name, data, bytes.size());
}
inline OSSL_PARAM text(char const* name, char const* value) noexcept {
    return ::OSSL_PARAM_construct_utf8_string(name, const_cast<char*>(value), 0);
}

} // namespace coffer::crypto
