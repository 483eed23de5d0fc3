#include "crypto/aead.hpp"

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {
Result<CipherContext> start(AeadKey const& key, GcmNonce const& nonce, Bytes aad, bool encrypt) {
    COFFER_ASSERT(aad.size() <= INT32_MAX);
    CipherPtr cipher(::EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr));
    CipherContext context(::EVP_CIPHER_CTX_new());
    int length = 0;
    if (!cipher || !context ||
        ::EVP_CipherInit_ex2(context.get(), cipher.get(), uchars(key.expose()), uchars(nonce), encrypt ? 1 : 0,
                             nullptr) != 1 ||
        (!aad.empty() &&
         ::EVP_CipherUpdate(context.get(), nullptr, &length, uchars(aad), static_cast<int>(aad.size())) != 1))
        return openssl_error("cannot set up AES-256-GCM");
    return context;
}

bool update(EVP_CIPHER_CTX* context, Bytes from, MutBytes to) {
    if (from.empty()) return true;
    int length = 0;
    return ::EVP_CipherUpdate(context, writable(to), &length, uchars(from), static_cast<int>(from.size())) == 1 &&
           static_cast<size_t>(length) == from.size();
}
} // namespace

Result<ByteVector> gcm_seal(AeadKey const& key, GcmNonce const& nonce, Bytes aad, Bytes plaintext) {
    COFFER_ASSERT(plaintext.size() <= INT32_MAX - k_gcm_tag_size);
    auto context = TRY(start(key, nonce, aad, true));
    ByteVector sealed(plaintext.size() + k_gcm_tag_size);
    MutBytes const text_part = MutBytes(sealed).first(plaintext.size());
    MutBytes const tag = MutBytes(sealed).last(k_gcm_tag_size);
    int length = 0;
    std::array<unsigned char, 16> rest{};
    if (!update(context.get(), plaintext, text_part) ||
        ::EVP_CipherFinal_ex(context.get(), rest.data(), &length) != 1 ||
        ::EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_GET_TAG, k_gcm_tag_size, tag.data()) != 1)
        return openssl_error("AES-256-GCM failed");
    return sealed;
}

Result<SecretBytes> gcm_open(AeadKey const& key, GcmNonce const& nonce, Bytes aad, Bytes sealed) {
    if (sealed.size() < k_gcm_tag_size || sealed.size() > INT32_MAX)
        return make_error(ErrorCode::Integrity, "a sealed part has the impossible size {}", sealed.size());
    Bytes const text_part = sealed.first(sealed.size() - k_gcm_tag_size);
    std::array<std::byte, k_gcm_tag_size> tag{}; // OpenSSL wants it writable
    std::memcpy(tag.data(), sealed.last(k_gcm_tag_size).data(), tag.size());
    auto context = TRY(start(key, nonce, aad, false));
    SecretBytes plaintext(text_part.size());
    if (!update(context.get(), text_part, plaintext.expose_mutable()) ||
        ::EVP_CIPHER_CTX_ctrl(context.get(), EVP_CTRL_AEAD_SET_TAG, k_gcm_tag_size, tag.data()) != 1)
        return openssl_error("AES-256-GCM failed");
    int length = 0;
    std::array<unsigned char, 16> rest{};
    if (::EVP_CipherFinal_ex(context.get(), rest.data(), &length) != 1)
        return make_error(ErrorCode::Integrity, "a sealed part fails authentication");
    return plaintext;
}

} // namespace coffer::crypto
