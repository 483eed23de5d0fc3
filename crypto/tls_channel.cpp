#include "crypto/tls_channel.hpp"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "crypto/openssl.hpp"

namespace coffer::crypto {

namespace {

using ContextPtr = std::unique_ptr<SSL_CTX, FreeBy<SSL_CTX_free>>;

// What the server says first, once it has accepted the client's certificate: in TLS 1.3 a client's handshake is done
// before the server has seen its certificate.
constexpr std::byte k_accepted{0xC0};
constexpr int k_step_ms = 100;
constexpr size_t k_pump_buffer = size_t{256} << 10;

// What the verification of the other end's certificate found, for this connection.
struct Verdict {
    std::function<Result<void>(Certificate const&, Digest const&)> const* check = nullptr;
    std::optional<Error> error;
    Digest fingerprint{};
};

int verdict_index() {
    static int const index = ::SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, nullptr);
    return index;
}

Result<void> judge(X509* shown, Verdict& verdict) {
    if (!shown) return make_error(ErrorCode::Permission, "the other host shows no certificate");
    int const size = ::i2d_X509(shown, nullptr);
    if (size <= 0 || static_cast<size_t>(size) > k_max_certificate)
        return make_error(ErrorCode::Permission, "the other host's certificate cannot be read");
    ByteVector der(static_cast<size_t>(size));
    auto* to = writable(der);
    if (::i2d_X509(shown, &to) != size) return openssl_error("the other host's certificate cannot be encoded");
    auto certificate = TRY(Certificate::parse_der(der));
    verdict.fingerprint = TRY(sha256({der}));
    TRY((*verdict.check)(certificate, verdict.fingerprint));
    return check_dates(certificate, wall_clock_seconds());
}

// In place of OpenSSL's own verification, which asks for chains: a pinned certificate needs none.
int verify(X509_STORE_CTX* store, void*) {
    auto* connection = static_cast<SSL*>(::X509_STORE_CTX_get_ex_data(store, ::SSL_get_ex_data_X509_STORE_CTX_idx()));
    auto* verdict = static_cast<Verdict*>(::SSL_get_ex_data(connection, verdict_index()));
    auto judged = judge(::X509_STORE_CTX_get0_cert(store), *verdict);
    if (judged) return 1;
    verdict->error = std::move(judged).error();
    ::X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
    return 0;
}

Result<ContextPtr> make_context(TlsChannel::Settings const& settings, bool server) {
    ::ERR_clear_error();
    ContextPtr context(::SSL_CTX_new(server ? ::TLS_server_method() : ::TLS_client_method()));
    if (!context || ::SSL_CTX_set_min_proto_version(context.get(), TLS1_3_VERSION) != 1 ||
        ::SSL_CTX_set_max_proto_version(context.get(), TLS1_3_VERSION) != 1 ||
        ::SSL_CTX_set_ciphersuites(context.get(),
                                   "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256") != 1)
        return openssl_error("TLS cannot be set up");
    ::SSL_CTX_set_options(context.get(), SSL_OP_CLEANSE_PLAINTEXT | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET);
    ::SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
    ::SSL_CTX_set_num_tickets(context.get(), 0); // every connection shows its certificate
    ::SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
    ::SSL_CTX_set_cert_verify_callback(context.get(), verify, nullptr);
    if (::SSL_CTX_use_certificate(context.get(), settings.own.native()) != 1 ||
        ::SSL_CTX_use_PrivateKey(context.get(), settings.key.native()) != 1 ||
        ::SSL_CTX_check_private_key(context.get()) != 1)
        return openssl_error("this host's certificate and key cannot be used");
    return context;
}

// Whether the other end has said by an alert that it refuses this host's certificate (RFC 8446, 6.2).
bool is_refusal(unsigned long code) {
    if (ERR_GET_LIB(code) != ERR_LIB_SSL) return false;
    switch (ERR_GET_REASON(code)) {
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
    case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
    case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED: return true;
    default: return false;
    }
}

Error failure_of(int reason, int error) {
    unsigned long const code = ::ERR_peek_last_error();
    char const* text = code != 0 ? ::ERR_reason_error_string(code) : nullptr;
    ::ERR_clear_error();
    if (is_refusal(code))
        return make_error(ErrorCode::Permission,
                          "the other host does not accept this host's certificate: have it trusted there ('coffer host "
                          "cert --export FILE' here, 'coffer host trust FILE' there)");
    if (reason == SSL_ERROR_ZERO_RETURN || (reason == SSL_ERROR_SYSCALL && error == 0) ||
        (code != 0 && ERR_GET_LIB(code) == ERR_LIB_SSL && ERR_GET_REASON(code) == SSL_R_UNEXPECTED_EOF_WHILE_READING))
        return make_error(ErrorCode::Io, "the other host closed the connection");
    if (reason == SSL_ERROR_SYSCALL) return errno_error(error, "the connection to the other host failed");
    return make_error(ErrorCode::Corrupt, "the other host does not speak TLS 1.3 as it should: {}",
                      text ? text : "no reason given");
}

// Does `step` until it is done, waiting for the socket as it asks.
template <class Step>
Result<void> until_done(SSL* connection, int socket, Nanoseconds end, Step step) {
    for (;;) {
        ::ERR_clear_error();
        errno = 0;
        int const done = step();
        int const error = errno;
        if (done > 0) return {};
        int const reason = ::SSL_get_error(connection, done);
        if (reason != SSL_ERROR_WANT_READ && reason != SSL_ERROR_WANT_WRITE) return failure_of(reason, error);
        auto const left = end - monotonic_now();
        if (left <= 0) return make_error(ErrorCode::Timeout, "the other host does not answer");
        pollfd watched{socket, static_cast<short>(reason == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT), 0};
        if (::poll(&watched, 1, static_cast<int>(left / k_ns_per_ms) + 1) < 0 && errno != EINTR)
            return errno_error(errno, "cannot wait for the other host");
    }
}

Result<void> make_nonblocking(int fd) {
    int const flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return errno_error(errno, "cannot set a socket up");
    return {};
}

// One direction's bytes on their way.
struct Flow {
    ByteVector buffer = ByteVector(k_pump_buffer);
    size_t first = 0;
    size_t last = 0;
    bool ended = false;  // nothing more comes in
    bool passed = false; // and the receiver knows

    bool empty() const noexcept { return first == last; }
    void filled(size_t size) noexcept {
        first = 0;
        last = size;
    }
};

} // namespace

Result<Digest> fingerprint_of(Certificate const& certificate) {
    auto der = TRY(certificate.to_der());
    return sha256({der});
}

std::string format_fingerprint(Digest const& fingerprint) {
    std::string text;
    for (std::byte byte : fingerprint)
        text += fmt::format("{}{:02x}", text.empty() ? "" : ":", std::to_integer<unsigned>(byte));
    return text;
}

Result<Digest> parse_fingerprint(std::string_view text) {
    Digest digest{};
    size_t digits = 0;
    for (char c : text) {
        if (c == ':') continue;
        unsigned value = 0;
        if (c >= '0' && c <= '9')
            value = static_cast<unsigned>(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = static_cast<unsigned>(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            value = static_cast<unsigned>(c - 'A') + 10;
        else
            return make_error(ErrorCode::Corrupt, "'{}' is no SHA-256 of a certificate", text);
        if (digits >= 2 * digest.size()) return make_error(ErrorCode::Corrupt, "'{}' is too long for a SHA-256", text);
        auto& byte = digest[digits / 2];
        byte = static_cast<std::byte>(std::to_integer<unsigned>(byte) << 4 | value);
        ++digits;
    }
    if (digits != 2 * digest.size()) return make_error(ErrorCode::Corrupt, "'{}' is too short for a SHA-256", text);
    return digest;
}

Result<void> check_dates(Certificate const& certificate, int64_t now) {
    if (now < certificate.not_before())
        return make_error(ErrorCode::Permission,
                          "the certificate of {} is not valid yet: are the clocks of both hosts right?",
                          certificate.subject());
    if (now > certificate.not_after())
        return make_error(ErrorCode::Permission,
                          "the certificate of {} is no longer valid: make a new one there ('coffer host cert --renew') "
                          "and trust it here",
                          certificate.subject());
    return {};
}

void TlsChannel::Free::operator()(ssl_st* connection) const noexcept {
    ::SSL_free(connection);
}

TlsChannel::TlsChannel(TlsChannel&&) noexcept = default;
TlsChannel& TlsChannel::operator=(TlsChannel&&) noexcept = default;
TlsChannel::~TlsChannel() = default;

Result<TlsChannel> TlsChannel::open(UniqueFd socket, Settings const& settings, bool server) {
    TRY(check_dates(settings.own, wall_clock_seconds()));
    auto context = TRY(make_context(settings, server));
    Connection connection(::SSL_new(context.get()));
    Verdict verdict{&settings.check, {}, {}};
    if (!connection || ::SSL_set_fd(connection.get(), socket.get()) != 1 ||
        ::SSL_set_ex_data(connection.get(), verdict_index(), &verdict) != 1)
        return openssl_error("a TLS connection cannot be set up");
    TRY(make_nonblocking(socket.get()));
    auto const end = monotonic_now() + settings.limit;
    auto shaken = until_done(connection.get(), socket.get(), end,
                             [&] { return server ? ::SSL_accept(connection.get()) : ::SSL_connect(connection.get()); });
    if (verdict.error) return std::move(*verdict.error);
    TRY(std::move(shaken));
    if (::SSL_get_verify_result(connection.get()) != X509_V_OK || !::SSL_get0_peer_certificate(connection.get()))
        return make_error(ErrorCode::Permission, "the other host shows no certificate");
    std::byte word = k_accepted;
    TRY(until_done(connection.get(), socket.get(), end, [&] {
        return server ? ::SSL_write(connection.get(), &word, 1) : ::SSL_read(connection.get(), &word, 1);
    }));
    if (word != k_accepted) return make_error(ErrorCode::Corrupt, "the other host speaks another protocol");
    ::SSL_set_ex_data(connection.get(), verdict_index(), nullptr); // it is about to end
    return TlsChannel(std::move(socket), std::move(connection), {verdict.fingerprint});
}

Result<TlsChannel> TlsChannel::connect(UniqueFd socket, Settings const& settings) {
    return open(std::move(socket), settings, false);
}

Result<TlsChannel> TlsChannel::accept(UniqueFd socket, Settings const& settings) {
    return open(std::move(socket), settings, true);
}

Result<ByteVector> TlsChannel::export_key(std::string_view label, size_t size) const {
    ByteVector key(size);
    if (::SSL_export_keying_material(m_connection.get(), writable(key), size, label.data(), label.size(), nullptr, 0,
                                     0) != 1)
        return openssl_error("TLS gives no keying material");
    return key;
}

std::string TlsChannel::describe() const {
    return fmt::format("{}, {}", ::SSL_get_version(m_connection.get()), ::SSL_get_cipher_name(m_connection.get()));
}

Result<void> TlsChannel::pump(int local, std::function<bool()> const& keep_on) {
    TRY(make_nonblocking(local));
    SSL* const tls = m_connection.get();
    Flow in;  // from the other end
    Flow out; // to it
    while (!in.passed || !out.passed) {
        if (!keep_on()) return make_error(ErrorCode::Cancelled, "given up");
        short tls_events = 0;
        short local_events = 0;
        bool moved = false;
        // What TLS wants is what it said last, whichever way the bytes go.
        auto wait_for = [&](int done) -> Result<bool> {
            int const error = errno;
            int const reason = ::SSL_get_error(tls, done);
            if (reason == SSL_ERROR_WANT_READ) tls_events = static_cast<short>(tls_events | POLLIN);
            if (reason == SSL_ERROR_WANT_WRITE) tls_events = static_cast<short>(tls_events | POLLOUT);
            if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE) return false;
            if (reason == SSL_ERROR_ZERO_RETURN) return true;
            return failure_of(reason, error);
        };
        if (in.empty() && !in.ended) {
            ::ERR_clear_error();
            errno = 0;
            int const got = ::SSL_read(tls, in.buffer.data(), static_cast<int>(in.buffer.size()));
            if (got > 0) {
                in.filled(static_cast<size_t>(got));
                moved = true;
            } else {
                in.ended = TRY(wait_for(got));
            }
        }
        if (!in.empty()) {
            auto const sent = ::send(local, in.buffer.data() + in.first, in.last - in.first, MSG_NOSIGNAL);
            if (sent > 0) {
                in.first += static_cast<size_t>(sent);
                moved = true;
            } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                local_events = static_cast<short>(local_events | POLLOUT);
            } else if (errno != EINTR) {
                return errno_error(errno, "the VM's process closed the connection");
            }
        }
        if (in.ended && in.empty() && !in.passed) {
            ::shutdown(local, SHUT_WR);
            in.passed = true;
        }
        if (out.empty() && !out.ended) {
            auto const got = ::recv(local, out.buffer.data(), out.buffer.size(), 0);
            if (got > 0) {
                out.filled(static_cast<size_t>(got));
                moved = true;
            } else if (got == 0) {
                out.ended = true;
            } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
                local_events = static_cast<short>(local_events | POLLIN);
            } else if (errno == ECONNRESET) {
                out.ended = true; // the process is gone
            } else if (errno != EINTR) {
                return errno_error(errno, "the connection to the VM's process failed");
            }
        }
        if (!out.empty()) {
            ::ERR_clear_error();
            errno = 0;
            int const sent = ::SSL_write(tls, out.buffer.data() + out.first, static_cast<int>(out.last - out.first));
            if (sent > 0) {
                out.first += static_cast<size_t>(sent);
                moved = true;
            } else if (TRY(wait_for(sent))) {
                return make_error(ErrorCode::Io, "the other host closed the connection");
            }
        }
        if (out.ended && out.empty() && !out.passed) {
            ::ERR_clear_error();
            if (::SSL_shutdown(tls) < 0) ::ERR_clear_error();
            out.passed = true;
            moved = true;
        }
        if (moved) continue;
        std::array<pollfd, 2> watched{{{m_socket.get(), tls_events, 0}, {local, local_events, 0}}};
        // What is hung up and not waited for would wake us for ever.
        if (tls_events == 0) watched[0].fd = -1;
        if (local_events == 0) watched[1].fd = -1;
        if (::poll(watched.data(), watched.size(), k_step_ms) < 0 && errno != EINTR)
            return errno_error(errno, "cannot wait for the other host");
    }
    return {};
}

} // namespace coffer::crypto
