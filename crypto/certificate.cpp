#include "crypto/certificate.hpp"

#include <ctime>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {

using BioPtr = std::unique_ptr<BIO, FreeBy<BIO_free_all>>;
using StorePtr = std::unique_ptr<X509_STORE, FreeBy<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, FreeBy<X509_STORE_CTX_free>>;
using StackPtr = std::unique_ptr<STACK_OF(X509), decltype([](STACK_OF(X509) * stack) { sk_X509_free(stack); })>;
using MdContext = std::unique_ptr<EVP_MD_CTX, FreeBy<EVP_MD_CTX_free>>;

std::string contents(BIO* bio) {
    char* data = nullptr;
    auto const size = BIO_get_mem_data(bio, &data);
    return size > 0 ? std::string(data, static_cast<size_t>(size)) : std::string();
}

// What `write` prints; empty where it fails.
template <class Write>
std::string printed(Write&& write) {
    BioPtr const bio(::BIO_new(::BIO_s_mem()));
    return bio && write(bio.get()) ? contents(bio.get()) : std::string();
}

// An i2d function's output.
template <class Encode>
Result<ByteVector> encoded(Encode&& encode) {
    int const size = encode(nullptr);
    if (size <= 0) return openssl_error("cannot encode a part of a certificate");
    ByteVector bytes(static_cast<size_t>(size));
    auto* to = writable(bytes);
    if (encode(&to) != size) return openssl_error("cannot encode a part of a certificate");
    return bytes;
}

std::string name_text(X509_NAME const* name) {
    return printed([&](BIO* bio) { return ::X509_NAME_print_ex(bio, name, 0, XN_FLAG_RFC2253) >= 0; });
}

int64_t seconds_of(ASN1_TIME const* time) {
    std::tm utc{};
    return ::ASN1_TIME_to_tm(time, &utc) == 1 ? ::timegm(&utc) : 0;
}

ByteVector copy_of(ASN1_STRING const* string) {
    if (!string) return {};
    auto bytes =
        std::as_bytes(std::span(::ASN1_STRING_get0_data(string), static_cast<size_t>(::ASN1_STRING_length(string))));
    return {bytes.begin(), bytes.end()};
}

} // namespace

Result<Certificate> Certificate::parse_der(Bytes der) {
    auto const* at = uchars(der);
    auto* parsed = der.size() <= k_max_certificate ? ::d2i_X509(nullptr, &at, static_cast<long>(der.size())) : nullptr;
    ::ERR_clear_error();
    Certificate certificate(std::shared_ptr<x509_st>(parsed, ::X509_free));
    if (!parsed || at != uchars(der) + der.size())
        return make_error(ErrorCode::Corrupt, "{} bytes are no X.509 certificate in DER", der.size());
    return certificate;
}

Result<std::vector<Certificate>> Certificate::parse_pem(std::string_view text) {
    std::vector<Certificate> certificates;
    BioPtr const bio(text.size() > INT32_MAX ? nullptr : ::BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
    if (!bio) return openssl_error("cannot read certificates");
    while (auto* parsed = ::PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr))
        certificates.push_back(Certificate(std::shared_ptr<x509_st>(parsed, ::X509_free)));
    auto const last = ::ERR_peek_last_error();
    ::ERR_clear_error();
    // The end of the text is how reading ends.
    if (ERR_GET_LIB(last) != ERR_LIB_PEM || ERR_GET_REASON(last) != PEM_R_NO_START_LINE)
        return make_error(ErrorCode::Corrupt, "certificate {} of the PEM text is malformed", certificates.size() + 1);
    return certificates;
}

Certificate Certificate::clone() const {
    return Certificate(m_certificate);
}

Result<ByteVector> Certificate::to_der() const {
    return encoded([&](unsigned char** to) { return ::i2d_X509(native(), to); });
}

Result<std::string> Certificate::to_pem() const {
    auto text = printed([&](BIO* bio) { return ::PEM_write_bio_X509(bio, native()) == 1; });
    if (text.empty()) return openssl_error("cannot write a certificate");
    return text;
}

Result<std::string> Certificate::describe() const {
    auto text = printed([&](BIO* bio) { return ::X509_print(bio, native()) == 1; });
    if (text.empty()) return openssl_error("cannot describe a certificate");
    return text;
}

std::string Certificate::subject() const {
    return name_text(::X509_get_subject_name(native()));
}

std::string Certificate::issuer() const {
    return name_text(::X509_get_issuer_name(native()));
}

std::string Certificate::serial() const {
    return printed([&](BIO* bio) { return ::i2a_ASN1_INTEGER(bio, ::X509_get0_serialNumber(native())) > 0; });
}

int64_t Certificate::not_before() const {
    return seconds_of(::X509_get0_notBefore(native()));
}

int64_t Certificate::not_after() const {
    return seconds_of(::X509_get0_notAfter(native()));
}

Result<ByteVector> Certificate::subject_name() const {
    return encoded([&](unsigned char** to) { return ::i2d_X509_NAME(::X509_get_subject_name(native()), to); });
}

Result<ByteVector> Certificate::issuer_name() const {
    return encoded([&](unsigned char** to) { return ::i2d_X509_NAME(::X509_get_issuer_name(native()), to); });
}

Result<ByteVector> Certificate::serial_number() const {
    return encoded([&](unsigned char** to) { return ::i2d_ASN1_INTEGER(::X509_get0_serialNumber(native()), to); });
}

ByteVector Certificate::key_identifier() const {
    return copy_of(::X509_get0_subject_key_id(native()));
}

Result<ByteVector> Certificate::public_key() const {
    return encoded([&](unsigned char** to) { return ::i2d_X509_PUBKEY(::X509_get_X509_PUBKEY(native()), to); });
}

bool Certificate::is_authority() const {
    // 1: an X.509 v3 authority. Others are guesses about older certificates.
    return ::X509_check_ca(native()) == 1;
}

bool Certificate::is_self_signed() const {
    bool const self = ::X509_self_signed(native(), 1) == 1;
    ::ERR_clear_error();
    return self;
}

bool Certificate::has_key(SigningKey const& key) const {
    bool const same = ::X509_check_private_key(native(), key.native()) == 1;
    ::ERR_clear_error();
    return same;
}

bool Certificate::is_signed_by(Certificate const& issuer) const {
    bool const signed_by = ::X509_check_issued(issuer.native(), native()) == X509_V_OK &&
                           ::X509_verify(native(), ::X509_get0_pubkey(issuer.native())) == 1;
    ::ERR_clear_error();
    return signed_by;
}

bool Certificate::verifies(Bytes message, Bytes signature) const {
    // The hash that SigningKey chooses for such a key.
    auto* key = ::X509_get0_pubkey(native());
    int const bits = key ? ::EVP_PKEY_get_bits(key) : 0;
    bool const rsa = key && ::EVP_PKEY_is_a(key, "RSA") == 1;
    auto const* hash = bits == 521   ? ::EVP_sha512()
                       : rsa         ? (bits < 3072 ? ::EVP_sha256() : ::EVP_sha384())
                       : bits == 384 ? ::EVP_sha384()
                                     : ::EVP_sha256();
    MdContext const context(::EVP_MD_CTX_new());
    bool const good =
        key && context && ::EVP_DigestVerifyInit(context.get(), nullptr, hash, nullptr, key) == 1 &&
        ::EVP_DigestVerify(context.get(), uchars(signature), signature.size(), uchars(message), message.size()) == 1;
    ::ERR_clear_error();
    return good;
}

Result<void> verify_chain(Certificate const& leaf, std::span<Certificate const> authorities, int64_t time) {
    COFFER_ASSERT(!authorities.empty());
    StorePtr const store(::X509_STORE_new());
    StackPtr const untrusted(sk_X509_new_null());
    StoreContext const context(::X509_STORE_CTX_new());
    bool ready = store && untrusted && context;
    ready = ready && ::X509_STORE_add_cert(store.get(), authorities.back().native()) == 1;
    for (auto const& authority : authorities.first(authorities.size() - 1))
        ready = ready && sk_X509_push(untrusted.get(), authority.native()) > 0;
    ready = ready && ::X509_STORE_CTX_init(context.get(), store.get(), leaf.native(), untrusted.get()) == 1;
    if (!ready) return openssl_error("cannot check a chain of certificates");
    ::X509_STORE_CTX_set_time(context.get(), 0, time);
    bool const good = ::X509_verify_cert(context.get()) == 1;
    int const reason = ::X509_STORE_CTX_get_error(context.get());
    ::ERR_clear_error();
    if (!good)
        return make_error(ErrorCode::Integrity, "the chain of certificates does not hold: {}",
                          ::X509_verify_cert_error_string(reason));
    return {};
}

} // namespace coffer::crypto
