#include "crypto/mac.hpp"

#include <openssl/crypto.h>

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {
Result<MacContext> make_hmac(Bytes key) {
    MacPtr mac(::EVP_MAC_fetch(nullptr, OSSL_MAC_NAME_HMAC, nullptr));
    MacContext context(mac ? ::EVP_MAC_CTX_new(mac.get()) : nullptr);
    std::array params = {text(OSSL_MAC_PARAM_DIGEST, OSSL_DIGEST_NAME_SHA2_256), ::OSSL_PARAM_construct_end()};
    std::byte const none{};
    auto const* key_bytes = key.empty() ? uchars(object_bytes(none)) : uchars(key);
    if (!context || ::EVP_MAC_init(context.get(), key_bytes, key.size(), params.data()) != 1)
        return openssl_error("cannot set up HMAC-SHA-256");
    return context;
}

Result<Digest> finish(EVP_MAC_CTX* context, std::initializer_list<Bytes> parts) {
    for (Bytes part : parts)
        if (!part.empty() && ::EVP_MAC_update(context, uchars(part), part.size()) != 1)
            return openssl_error("HMAC-SHA-256 failed");
    Digest digest;
    size_t length = 0;
    if (::EVP_MAC_final(context, writable(digest), &length, digest.size()) != 1 || length != digest.size())
        return openssl_error("HMAC-SHA-256 failed");
    return digest;
}
} // namespace

Result<Digest> sha256(std::initializer_list<Bytes> parts) {
    std::unique_ptr<EVP_MD, FreeBy<EVP_MD_free>> md(::EVP_MD_fetch(nullptr, "SHA2-256", nullptr));
    std::unique_ptr<EVP_MD_CTX, FreeBy<EVP_MD_CTX_free>> context(::EVP_MD_CTX_new());
    if (!md || !context || ::EVP_DigestInit_ex2(context.get(), md.get(), nullptr) != 1)
        return openssl_error("cannot set up SHA-256");
    for (Bytes part : parts)
        if (!part.empty() && ::EVP_DigestUpdate(context.get(), part.data(), part.size()) != 1)
            return openssl_error("SHA-256 failed");
    Digest digest;
    unsigned length = 0;
    if (::EVP_DigestFinal_ex(context.get(), writable(digest), &length) != 1 || length != digest.size())
        return openssl_error("SHA-256 failed");
    return digest;
}

Result<HmacSha256> HmacSha256::create(MacKey const& key) {
    HmacSha256 mac;
    mac.m_context = TRY(make_hmac(key.expose())).release();
    return mac;
}

HmacSha256::~HmacSha256() {
    ::EVP_MAC_CTX_free(m_context);
}

Result<Digest> HmacSha256::compute(std::initializer_list<Bytes> parts) {
    // Without a key EVP_MAC_init restarts under the one it has (EVP_MAC(3)).
    if (::EVP_MAC_init(m_context, nullptr, 0, nullptr) != 1) return openssl_error("cannot restart HMAC-SHA-256");
    return finish(m_context, parts);
}

Result<bool> HmacSha256::verify(std::initializer_list<Bytes> parts, Bytes expected) {
    auto digest = TRY(compute(parts));
    return equal_in_constant_time(digest, expected);
}

Result<Digest> detail::hmac_sha256(Bytes key, Bytes message) {
    auto context = TRY(make_hmac(key));
    return finish(context.get(), {message});
}

bool equal_in_constant_time(Bytes a, Bytes b) noexcept {
    return a.size() == b.size() && ::CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

} // namespace coffer::crypto
