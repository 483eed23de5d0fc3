#include "crypto/kdf.hpp"

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {
Result<SecretBytes> derive(char const* name, OSSL_PARAM const* params, size_t size) {
    KdfPtr kdf(::EVP_KDF_fetch(nullptr, name, nullptr));
    KdfContext context(kdf ? ::EVP_KDF_CTX_new(kdf.get()) : nullptr);
    SecretBytes output(size);
    if (!context || ::EVP_KDF_derive(context.get(), writable(output.expose_mutable()), size, params) != 1)
        return openssl_error(fmt::format("key derivation by {} failed", name));
    return output;
}
} // namespace

Result<SecretBytes> hkdf_sha256(Bytes input_key, Bytes salt, std::string_view info, size_t size) {
    std::array params = {text(OSSL_KDF_PARAM_DIGEST, OSSL_DIGEST_NAME_SHA2_256), octets(OSSL_KDF_PARAM_KEY, input_key),
                         octets(OSSL_KDF_PARAM_SALT, salt), octets(OSSL_KDF_PARAM_INFO, as_bytes(info)),
                         ::OSSL_PARAM_construct_end()};
    return derive(OSSL_KDF_NAME_HKDF, params.data(), size);
}

Result<SecretBytes> kbkdf_hmac_sha256(Bytes key, Bytes label, Bytes context, size_t size) {
    // OpenSSL's names: "salt" is the label, "info" the context (EVP_KDF-KB(7)); separator and length are on by default.
    std::array params = {text(OSSL_KDF_PARAM_DIGEST, OSSL_DIGEST_NAME_SHA2_256),
                         text(OSSL_KDF_PARAM_MAC, OSSL_MAC_NAME_HMAC),
                         octets(OSSL_KDF_PARAM_KEY, key),
                         octets(OSSL_KDF_PARAM_SALT, label),
                         octets(OSSL_KDF_PARAM_INFO, context),
                         ::OSSL_PARAM_construct_end()};
    return derive(OSSL_KDF_NAME_KBKDF, params.data(), size);
}

Result<SecretBytes> detail::kbkdf_hmac_sha256_raw(Bytes key, Bytes fixed_input, size_t size) {
    int off = 0;
    std::array params = {text(OSSL_KDF_PARAM_DIGEST, OSSL_DIGEST_NAME_SHA2_256),
                         text(OSSL_KDF_PARAM_MAC, OSSL_MAC_NAME_HMAC),
                         octets(OSSL_KDF_PARAM_KEY, key),
                         octets(OSSL_KDF_PARAM_SALT, fixed_input),
                         ::OSSL_PARAM_construct_int(OSSL_KDF_PARAM_KBKDF_USE_L, &off),
                         ::OSSL_PARAM_construct_int(OSSL_KDF_PARAM_KBKDF_USE_SEPARATOR, &off),
                         ::OSSL_PARAM_construct_end()};
    return derive(OSSL_KDF_NAME_KBKDF, params.data(), size);
}

bool ScryptCost::acceptable() const noexcept {
    return log2_n >= 1 && log2_n <= 20 && r >= 1 && r <= 8 && p >= 1 && p <= 16;
}

Result<SecretBytes> scrypt(SecretBytes const& passphrase, Bytes salt, ScryptCost cost, size_t size) {
    if (!cost.acceptable())
        return make_error(ErrorCode::InvalidArgument, "scrypt cost N=2^{} r={} p={} is out of bounds", cost.log2_n,
                          cost.r, cost.p);
    uint64_t n = uint64_t{1} << cost.log2_n;
    // 128 * r * N for the table; the passes and OpenSSL's own buffers need little more.
    uint64_t max_memory = 128 * uint64_t{cost.r} * (n + cost.p + 2) + (uint64_t{1} << 20);
    std::array params = {octets(OSSL_KDF_PARAM_PASSWORD, passphrase.expose()),
                         octets(OSSL_KDF_PARAM_SALT, salt),
                         ::OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_N, &n),
                         ::OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_R, &cost.r),
                         ::OSSL_PARAM_construct_uint32(OSSL_KDF_PARAM_SCRYPT_P, &cost.p),
                         ::OSSL_PARAM_construct_uint64(OSSL_KDF_PARAM_SCRYPT_MAXMEM, &max_memory),
                         ::OSSL_PARAM_construct_end()};
    return derive(OSSL_KDF_NAME_SCRYPT, params.data(), size);
}

} // namespace coffer::crypto
