// TLS 1.3 (RFC 8446) between two hosts that both show a certificate and know each other's: no authorities, no names.
// What makes a certificate good is its owner's word, exactly that certificate (by its SHA-256), and its dates.
//
// A channel is one thread's. The process ignores SIGPIPE: OpenSSL writes to sockets that may be closed.
#pragma once

#include <functional>
#include <memory>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/certificate.hpp"
#include "crypto/mac.hpp"

struct ssl_ctx_st;
struct ssl_st;

namespace coffer::crypto {

// SHA-256 of the certificate's DER form.
Result<Digest> fingerprint_of(Certificate const& certificate);
// "ab:cd:..." in 32 pairs.
std::string format_fingerprint(Digest const& fingerprint);
// Corrupt where the text is none; case and colons do not matter.
Result<Digest> parse_fingerprint(std::string_view text);

// Permission unless `now` (Unix seconds) lies in the certificate's dates.
Result<void> check_dates(Certificate const& certificate, int64_t now);

struct TlsPeer {
    Digest fingerprint{};
};

class TlsChannel {
public:
    struct Settings {
        Certificate const& own;
        SigningKey const& key;
        // Whether the other end's certificate is one that is trusted, dates apart; the error's message is for the user.
        std::function<Result<void>(Certificate const& peer, Digest const& fingerprint)> check;
        Nanoseconds limit = 10 * k_ns_per_s; // for all of the handshake
    };

    // Over a connected stream socket, which the channel takes. Both return when each side has accepted the other's
    // certificate. Permission where one is refused (here, or by the other end), Timeout, Io, Corrupt where the other
    // end does not speak TLS 1.3.
    static Result<TlsChannel> connect(UniqueFd socket, Settings const& settings);
    static Result<TlsChannel> accept(UniqueFd socket, Settings const& settings);

    TlsChannel(TlsChannel&&) noexcept;
    TlsChannel& operator=(TlsChannel&&) noexcept;
    ~TlsChannel();

    TlsPeer const& peer() const noexcept { return m_peer; }
    // Keying material that both ends and nobody else can compute (RFC 8446, 7.5), without context.
    Result<ByteVector> export_key(std::string_view label, size_t size) const;
    // "TLSv1.3, TLS_AES_256_GCM_SHA384".
    std::string describe() const;

    // Moves bytes both ways between the other end and `local`, a stream socket, until both directions are closed, or
    // one of the ends is lost (Io). `keep_on` is asked some times a second: Cancelled where it says no.
    Result<void> pump(int local, std::function<bool()> const& keep_on);

private:
    struct Free {
        void operator()(ssl_st* connection) const noexcept;
    };
    using Connection = std::unique_ptr<ssl_st, Free>;

    TlsChannel(UniqueFd socket, Connection connection, TlsPeer peer)
        : m_socket(std::move(socket)), m_connection(std::move(connection)), m_peer(peer) {}
    static Result<TlsChannel> open(UniqueFd socket, Settings const& settings, bool server);

    UniqueFd m_socket;
    Connection m_connection;
    TlsPeer m_peer;
};

} // namespace coffer::crypto
