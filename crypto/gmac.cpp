#include "crypto/gmac.hpp"

#include "crypto/openssl.hpp"

namespace coffer::crypto {

Result<Gmac> Gmac::create(AeadKey const& key) {
    CipherPtr cipher(::EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr));
    CipherContext context(::EVP_CIPHER_CTX_new());
    if (!cipher || !context ||
        ::EVP_EncryptInit_ex2(context.get(), cipher.get(), uchars(key.expose()), nullptr, nullptr) != 1)
        return openssl_error("cannot set up AES-256-GMAC");
    Gmac mac;
    mac.m_context = context.release();
    return mac;
}

Gmac::~Gmac() {
    ::EVP_CIPHER_CTX_free(m_context);
}

Result<Gmac::Tag> Gmac::compute(uint64_t number, Bytes data) {
    COFFER_ASSERT(data.size() <= size_t{1} << 30);
    std::array<std::byte, 12> nonce{};
    store_be<uint64_t>(nonce, 4, number);
    Tag tag;
    std::array params = {::OSSL_PARAM_construct_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, tag.data(), tag.size()),
                         ::OSSL_PARAM_construct_end()};
    int length = 0;
    std::array<unsigned char, 16> nothing;
    // GMAC is GCM with all data as additional data (SP 800-38D, section 3).
    if (::EVP_EncryptInit_ex2(m_context, nullptr, nullptr, uchars(nonce), nullptr) != 1 ||
        ::EVP_EncryptUpdate(m_context, nullptr, &length, uchars(data), static_cast<int>(data.size())) != 1 ||
        ::EVP_EncryptFinal_ex(m_context, nothing.data(), &length) != 1 ||
        ::EVP_CIPHER_CTX_get_params(m_context, params.data()) != 1)
        return openssl_error("AES-256-GMAC failed");
    return tag;
}

} // namespace coffer::crypto
