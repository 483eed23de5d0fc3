#include "crypto/signing_key.hpp"

#include <optional>

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "crypto/der.hpp"
#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {

using KeyPtr = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;
using MdContext = std::unique_ptr<EVP_MD_CTX, FreeBy<EVP_MD_CTX_free>>;
using BioPtr = std::unique_ptr<BIO, FreeBy<BIO_free_all>>;
using Pkcs8Ptr = std::unique_ptr<PKCS8_PRIV_KEY_INFO, FreeBy<PKCS8_PRIV_KEY_INFO_free>>;

struct Algorithm {
    EVP_MD const* hash;
    std::string_view oid; // of the signature algorithm (RFC 5758, RFC 8017)
    bool null_parameters;
};

// Nothing for keys that are not taken.
std::optional<Algorithm> algorithm_of(EVP_PKEY const* key) {
    int const bits = ::EVP_PKEY_get_bits(key);
    if (::EVP_PKEY_is_a(key, "RSA") == 1) {
        if (bits < 2048 || bits > 8192) return std::nullopt;
        if (bits < 3072) return Algorithm{::EVP_sha256(), "1.2.840.113549.1.1.11", true};
        return Algorithm{::EVP_sha384(), "1.2.840.113549.1.1.12", true};
    }
    char group[64] = {};
    size_t length = 0;
    if (::EVP_PKEY_is_a(key, "EC") != 1 || ::EVP_PKEY_get_group_name(key, group, sizeof group, &length) != 1)
        return std::nullopt;
    std::string_view const curve(group, length);
    if (curve == "prime256v1") return Algorithm{::EVP_sha256(), "1.2.840.10045.4.3.2", false};
    if (curve == "secp384r1") return Algorithm{::EVP_sha384(), "1.2.840.10045.4.3.3", false};
    if (curve == "secp521r1") return Algorithm{::EVP_sha512(), "1.2.840.10045.4.3.4", false};
    return std::nullopt;
}

// No prompt where a key is under a passphrase.
int no_passphrase(char*, int, int, void*) noexcept {
    return -1;
}

} // namespace

SigningKey::~SigningKey() {
    ::EVP_PKEY_free(m_key);
}

Result<SigningKey> SigningKey::generate() {
    TRY(init_secret_memory());
    KeyPtr key(EVP_EC_gen("P-384"));
    if (!key) return openssl_error("cannot make a signing key");
    return SigningKey(key.release());
}

Result<SigningKey> SigningKey::parse_pem(SecretBytes const& pem) {
    TRY(init_secret_memory());
    auto const bytes = pem.expose();
    BioPtr bio(bytes.size() > INT32_MAX ? nullptr : ::BIO_new_mem_buf(bytes.data(), static_cast<int>(bytes.size())));
    KeyPtr key(bio ? ::PEM_read_bio_PrivateKey(bio.get(), nullptr, no_passphrase, nullptr) : nullptr);
    ::ERR_clear_error();
    if (!key)
        return make_error(ErrorCode::InvalidArgument,
                          "there is no private key in PEM, or a passphrase protects it ('openssl pkey -in FILE -out "
                          "NEW' takes that off)");
    if (!algorithm_of(key.get()))
        return make_error(ErrorCode::InvalidArgument,
                          "a key of the kind {} with {} bits cannot sign certificates here: ECC on P-256, P-384 or "
                          "P-521 and RSA from 2048 bits can",
                          ::EVP_PKEY_get0_type_name(key.get()), ::EVP_PKEY_get_bits(key.get()));
    return SigningKey(key.release());
}

Result<SigningKey> SigningKey::parse_der(Bytes der) {
    TRY(init_secret_memory());
    auto const* at = uchars(der);
    KeyPtr key(::d2i_AutoPrivateKey(nullptr, &at, static_cast<long>(der.size())));
    ::ERR_clear_error();
    if (!key || at != uchars(der) + der.size() || !algorithm_of(key.get()))
        return make_error(ErrorCode::Corrupt, "the stored signing key is malformed");
    return SigningKey(key.release());
}

Result<SecretBytes> SigningKey::to_der() const {
    Pkcs8Ptr const info(::EVP_PKEY2PKCS8(m_key));
    int const size = info ? ::i2d_PKCS8_PRIV_KEY_INFO(info.get(), nullptr) : 0;
    if (size <= 0) return openssl_error("cannot encode a signing key");
    SecretBytes bytes(static_cast<size_t>(size));
    auto* to = writable(bytes.expose_mutable());
    if (::i2d_PKCS8_PRIV_KEY_INFO(info.get(), &to) != size) return openssl_error("cannot encode a signing key");
    return bytes;
}

Result<ByteVector> SigningKey::public_key() const {
    int const size = ::i2d_PUBKEY(m_key, nullptr);
    if (size <= 0) return openssl_error("cannot encode a public key");
    ByteVector bytes(static_cast<size_t>(size));
    auto* to = writable(bytes);
    if (::i2d_PUBKEY(m_key, &to) != size) return openssl_error("cannot encode a public key");
    return bytes;
}

Result<ByteVector> SigningKey::sign(Bytes message) const {
    auto const algorithm = algorithm_of(m_key);
    COFFER_ASSERT(algorithm);
    MdContext const context(::EVP_MD_CTX_new());
    size_t size = 0;
    if (!context || ::EVP_DigestSignInit(context.get(), nullptr, algorithm->hash, nullptr, m_key) != 1 ||
        ::EVP_DigestSign(context.get(), nullptr, &size, uchars(message), message.size()) != 1)
        return openssl_error("cannot sign");
    ByteVector signature(size);
    if (::EVP_DigestSign(context.get(), writable(signature), &size, uchars(message), message.size()) != 1)
        return openssl_error("cannot sign");
    signature.resize(size); // ECDSA's is as long as its numbers happen to be
    return signature;
}

ByteVector SigningKey::algorithm() const {
    auto const algorithm = algorithm_of(m_key);
    COFFER_ASSERT(algorithm);
    auto const null = der::element(der::Null, Bytes());
    return der::sequence({der::oid(algorithm->oid), algorithm->null_parameters ? Bytes(null) : Bytes()});
}

} // namespace coffer::crypto
