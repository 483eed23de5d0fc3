#include "crypto/key_wrap.hpp"

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {
constexpr size_t k_semiblock = 8;
constexpr size_t k_max_data = 4096;

Result<CipherContext> start(Bytes kek, bool encrypt) {
    char const* name = kek.size() == 16   ? "AES-128-WRAP-PAD"
                       : kek.size() == 24 ? "AES-192-WRAP-PAD"
                                          : "AES-256-WRAP-PAD";
    COFFER_ASSERT(kek.size() == 16 || kek.size() == 24 || kek.size() == 32);
    CipherPtr cipher(::EVP_CIPHER_fetch(nullptr, name, nullptr));
    CipherContext context(::EVP_CIPHER_CTX_new());
    if (!cipher || !context) return openssl_error("cannot set up AES key wrap");
    // Key wrap ciphers want to be asked for explicitly (EVP_EncryptInit(3)).
    ::EVP_CIPHER_CTX_set_flags(context.get(), EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
    if (::EVP_CipherInit_ex2(context.get(), cipher.get(), uchars(kek), nullptr, encrypt ? 1 : 0, nullptr) != 1)
        return openssl_error("cannot set up AES key wrap");
    return context;
}
} // namespace

Result<ByteVector> detail::kwp_wrap(Bytes kek, Bytes data) {
    COFFER_ASSERT(!data.empty() && data.size() <= k_max_data);
    auto context = TRY(start(kek, true));
    ByteVector wrapped(align_up(data.size(), k_semiblock) + k_semiblock);
    int length = 0;
    if (::EVP_CipherUpdate(context.get(), writable(wrapped), &length, uchars(data), static_cast<int>(data.size())) !=
            1 ||
        static_cast<size_t>(length) != wrapped.size())
        return openssl_error("AES key wrap failed");
    return wrapped;
}

Result<SecretBytes> detail::kwp_unwrap(Bytes kek, Bytes wrapped) {
    if (wrapped.size() % k_semiblock != 0 || wrapped.size() < 2 * k_semiblock ||
        wrapped.size() > k_max_data + k_semiblock)
        return make_error(ErrorCode::Integrity, "a wrapped key has the impossible size {}", wrapped.size());
    auto context = TRY(start(kek, false));
    SecretBytes data(wrapped.size());
    int length = 0;
    if (::EVP_CipherUpdate(context.get(), writable(data.expose_mutable()), &length, uchars(wrapped),
                           static_cast<int>(wrapped.size())) != 1 ||
        length <= 0 || static_cast<size_t>(length) > data.size())
        return make_error(ErrorCode::Integrity,
                          "a wrapped key does not open: another key wrapped it, or it was changed");
    return SecretBytes::copy_of(data.expose().first(static_cast<size_t>(length)));
}

Result<ByteVector> kwp_wrap(KeyEncryptionKey const& kek, BundleKey const& key) {
    return detail::kwp_wrap(kek.expose(), key.expose());
}

Result<BundleKey> kwp_unwrap(KeyEncryptionKey const& kek, Bytes wrapped) {
    auto key = BundleKey::adopt(TRY(detail::kwp_unwrap(kek.expose(), wrapped)));
    if (!key) return make_error(ErrorCode::Integrity, "a wrapped key has another size than a bundle key");
    return std::move(*key);
}

} // namespace coffer::crypto
