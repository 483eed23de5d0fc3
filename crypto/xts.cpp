#include "crypto/xts.hpp"

#include "crypto/mac.hpp"
#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {
Result<EVP_CIPHER_CTX*> make_context(XtsKey const& key, bool encrypt) {
    CipherPtr cipher(::EVP_CIPHER_fetch(nullptr, "AES-256-XTS", nullptr));
    CipherContext context(::EVP_CIPHER_CTX_new());
    if (!cipher || !context ||
        ::EVP_CipherInit_ex2(context.get(), cipher.get(), uchars(key.expose()), nullptr, encrypt ? 1 : 0, nullptr) != 1)
        return openssl_error("cannot set up AES-256-XTS");
    return context.release();
}
} // namespace

Result<XtsCipher> XtsCipher::create(XtsKey const& key) {
    constexpr size_t k_half = XtsKey::k_size / 2;
    if (equal_in_constant_time(key.expose().first(k_half), key.expose().last(k_half)))
        return make_error(ErrorCode::InvalidArgument, "the two halves of an XTS key are equal");
    XtsCipher cipher;
    cipher.m_encrypt = TRY(make_context(key, true));
    cipher.m_decrypt = TRY(make_context(key, false));
    return cipher;
}

XtsCipher::~XtsCipher() {
    ::EVP_CIPHER_CTX_free(m_encrypt);
    ::EVP_CIPHER_CTX_free(m_decrypt);
}

Result<void> XtsCipher::run(EVP_CIPHER_CTX* context, uint64_t unit, Bytes from, MutBytes to) {
    constexpr size_t k_max_unit = size_t{16} << 20;
    COFFER_ASSERT(from.size() == to.size() && from.size() >= 16 && from.size() <= k_max_unit);
    std::array<std::byte, 16> tweak{};
    store_le<uint64_t>(tweak, 0, unit);
    int length = 0;
    if (::EVP_CipherInit_ex2(context, nullptr, nullptr, uchars(tweak), -1, nullptr) != 1 ||
        ::EVP_CipherUpdate(context, writable(to), &length, uchars(from), static_cast<int>(from.size())) != 1 ||
        static_cast<size_t>(length) != to.size())
        return openssl_error("AES-256-XTS failed");
    return {};
}

Result<void> XtsCipher::encrypt_unit(uint64_t unit, Bytes from, MutBytes to) {
    return run(m_encrypt, unit, from, to);
}

Result<void> XtsCipher::decrypt_unit(uint64_t unit, Bytes from, MutBytes to) {
    return run(m_decrypt, unit, from, to);
}

} // namespace coffer::crypto
