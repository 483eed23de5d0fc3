// TLS 1.2 and 1.3 for clients that show a certificate and verify the server's: OpenSSL's contexts set up the one way
// this project wants them. The caller moves the bytes.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "crypto/mac.hpp"

struct ssl_ctx_st;
struct ssl_st;

namespace coffer::crypto {

struct TlsIdentity {
    std::string authorities;   // PEM certificates that server certificates chain to; the host's own are not used
    std::string certificate;   // the client's, PEM, intermediates behind it
    SecretBytes key;           // its private key, PEM, not encrypted
    std::optional<Digest> pin; // SHA-256 of the server certificate's DER form
};

// Counted by OpenSSL (SSL_CTX_up_ref). Connections may share it.
using TlsContext = std::shared_ptr<ssl_ctx_st>;

// InvalidArgument where a certificate or the key cannot be read, or they do not belong together; the message names the
// options of `provider add kmip`.
Result<TlsContext> make_tls_client_context(TlsIdentity const& identity);
// One more reference, for an owner that frees it with SSL_CTX_free().
ssl_ctx_st* share_tls_context(TlsContext const& context) noexcept;

// Before the handshake: the certificate must be for this name, or for this address.
enum class TlsPeerKind { Name, Address };
Result<void> expect_tls_peer(ssl_st* connection, std::string const& host, TlsPeerKind kind);
// After the handshake, whether it succeeded or not. KeyUnavailable, with the reason, where the certificate was refused.
Result<void> check_tls_verdict(ssl_st* connection);
// After a successful handshake. KeyUnavailable where there is no certificate, or another one than the pinned.
Result<void> check_tls_pin(ssl_st* connection, std::optional<Digest> const& pin);
// "TLSv1.3, TLS_AES_256_GCM_SHA384".
std::string describe_tls(ssl_st* connection);

// Empties this thread's queue of OpenSSL's errors, which Asio takes its messages from.
void forget_tls_errors() noexcept;

} // namespace coffer::crypto
