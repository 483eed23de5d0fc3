#include "crypto/tls.hpp"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {

using BioPtr = std::unique_ptr<BIO, FreeBy<BIO_free_all>>;
using CertificatePtr = std::unique_ptr<X509, FreeBy<X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;
using ContextPtr = std::unique_ptr<SSL_CTX, FreeBy<SSL_CTX_free>>;

constexpr size_t k_max_certificates = 64; // in one PEM text

std::string last_reason() {
    unsigned long code = ::ERR_peek_last_error();
    char const* reason = code != 0 ? ::ERR_reason_error_string(code) : nullptr;
    ::ERR_clear_error();
    return reason ? reason : "no reason given";
}

Error unusable(std::string_view what) {
    return make_error(ErrorCode::InvalidArgument, "{} cannot be used: {}", what, last_reason());
}

Result<BioPtr> reader(Bytes pem, std::string_view what) {
    BioPtr bio(pem.size() <= INT32_MAX ? ::BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())) : nullptr);
    if (!bio) return unusable(what);
    return bio;
}

// Calls use(certificate) for each of the text; at least one.
template <class Use>
Result<void> for_each_certificate(std::string const& pem, std::string_view what, Use use) {
    auto bio = TRY(reader(as_bytes(pem), what));
    size_t count = 0;
    while (CertificatePtr certificate{::PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)}) {
        if (++count > k_max_certificates || !use(std::move(certificate))) return unusable(what);
    }
    if (count == 0) return unusable(what);
    ::ERR_clear_error(); // the text's end
    return {};
}

// Instead of asking on the terminal.
int no_password(char*, int, int, void*) {
    return 0;
}

Result<ContextPtr> make_context(TlsIdentity const& identity) {
    ::ERR_clear_error();
    ContextPtr context(::SSL_CTX_new(::TLS_client_method()));
    if (!context || ::SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1 ||
        ::SSL_CTX_set_max_proto_version(context.get(), TLS1_3_VERSION) != 1)
        return unusable("TLS");
    // Decrypted records, which hold keys, do not stay in OpenSSL's buffers.
    ::SSL_CTX_set_options(context.get(), SSL_OP_CLEANSE_PLAINTEXT | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
    ::SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
    ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);

    X509_STORE* store = ::SSL_CTX_get_cert_store(context.get());
    TRY(for_each_certificate(identity.authorities, "the certificate of the authority (--ca)",
                             [&](auto certificate) { return ::X509_STORE_add_cert(store, certificate.get()) == 1; }));
    bool first = true;
    TRY(for_each_certificate(identity.certificate, "the client's certificate (--cert)", [&](auto certificate) {
        if (std::exchange(first, false)) return ::SSL_CTX_use_certificate(context.get(), certificate.get()) == 1;
        if (::SSL_CTX_add0_chain_cert(context.get(), certificate.get()) != 1) return false;
        [[maybe_unused]] auto* owned = certificate.release();
        return true;
    }));
    constexpr std::string_view what = "the client's key (--key)";
    auto bio = TRY(reader(identity.key.expose(), what));
    KeyPtr key(::PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr));
    if (!key)
        return make_error(ErrorCode::InvalidArgument,
                          "{} is no private key in PEM form without a passphrase ('openssl pkey -in FILE -out NEW' "
                          "takes one off)",
                          what);
    if (::SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1 || ::SSL_CTX_check_private_key(context.get()) != 1)
        return unusable("the client's key with its certificate (--key, --cert)");
    return context;
}

} // namespace

Result<TlsContext> make_tls_client_context(TlsIdentity const& identity) {
    return TlsContext(TRY(make_context(identity)));
}

ssl_ctx_st* share_tls_context(TlsContext const& context) noexcept {
    ::SSL_CTX_up_ref(context.get());
    return context.get();
}

Result<void> expect_tls_peer(ssl_st* connection, std::string const& host, TlsPeerKind kind) {
    auto* expected = ::SSL_get0_param(connection);
    ::X509_VERIFY_PARAM_set_hostflags(expected, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    bool const prepared = kind == TlsPeerKind::Address
                              ? ::X509_VERIFY_PARAM_set1_ip_asc(expected, host.c_str()) == 1
                              : ::X509_VERIFY_PARAM_set1_host(expected, host.c_str(), host.size()) == 1 &&
                                    ::SSL_set_tlsext_host_name(connection, host.c_str()) == 1;
    if (!prepared) return openssl_error("the name of a TLS server cannot be checked");
    return {};
}

Result<void> check_tls_verdict(ssl_st* connection) {
    long const verdict = ::SSL_get_verify_result(connection);
    if (verdict != X509_V_OK)
        return make_error(ErrorCode::KeyUnavailable, "the server's certificate is refused: {}",
                          ::X509_verify_cert_error_string(verdict));
    return {};
}

Result<void> check_tls_pin(ssl_st* connection, std::optional<Digest> const& pin) {
    CertificatePtr certificate(::SSL_get1_peer_certificate(connection));
    if (!certificate) return make_error(ErrorCode::KeyUnavailable, "the server shows no certificate");
    if (!pin) return {};
    unsigned char* der = nullptr;
    int const size = ::i2d_X509(certificate.get(), &der);
    if (size <= 0) return openssl_error("the server's certificate cannot be encoded");
    auto digest = sha256({std::as_bytes(std::span(der, static_cast<size_t>(size)))});
    ::OPENSSL_free(der);
    if (!equal_in_constant_time(TRY(std::move(digest)), *pin))
        return make_error(ErrorCode::KeyUnavailable, "the server has another certificate than the pinned one");
    return {};
}

std::string describe_tls(ssl_st* connection) {
    return fmt::format("{}, {}", ::SSL_get_version(connection), ::SSL_get_cipher_name(connection));
}

void forget_tls_errors() noexcept {
    ::ERR_clear_error();
}

} // namespace coffer::crypto
