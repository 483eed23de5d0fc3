#include "keyprovider/kmip/client/tls_connection.hpp"

#include <chrono>
#include <utility> // Boost 1.74's Asio needs it and does not include it

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>

#include "keyprovider/kmip/ttlv/ttlv.hpp"

namespace coffer::kmip {

namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Stream = asio::ssl::stream<asio::ip::tcp::socket>;

bool is_address(std::string const& host) {
    error_code error;
    asio::ip::make_address(host, error);
    return !error;
}

class TlsConnection final : public Connection {
public:
    TlsConnection(crypto::TlsContext const& context, Endpoint endpoint)
        : m_context(crypto::share_tls_context(context)), m_stream(m_io, m_context), m_endpoint(std::move(endpoint)) {}
    ~TlsConnection() override {
        error_code ignored; // a peer that does not take the close_notify is no reason to wait
        m_stream.lowest_layer().close(ignored);
    }

    Result<void> open(Resolver const& resolver, std::optional<crypto::Digest> const& pin, Nanoseconds deadline) {
        Nanoseconds const begun = monotonic_now();
        TRY(connect(resolver, deadline));
        Nanoseconds const connected = monotonic_now();
        TRY(handshake(pin, deadline));
        m_report.connect_time = connected - begun;
        m_report.tls_time = monotonic_now() - connected;
        return {};
    }

    Result<crypto::SecretBytes> exchange(Bytes request, Nanoseconds deadline) override {
        TRY(wait(deadline, "sending a request",
                 [&](auto done) { asio::async_write(m_stream, asio::buffer(request.data(), request.size()), done); }));
        std::array<std::byte, k_item_header> header{};
        TRY(wait(deadline, "waiting for an answer",
                 [&](auto done) { asio::async_read(m_stream, asio::buffer(header.data(), header.size()), done); }));
        uint64_t const size = item_size(header);
        if (load_be<uint32_t>(header) >> 8 != static_cast<uint32_t>(Tag::ResponseMessage))
            return failed(ErrorCode::Corrupt, "answered with something that is no KMIP message");
        if (size > k_max_message)
            return failed(ErrorCode::Corrupt,
                          fmt::format("answered with {} bytes, and {} are accepted", size, k_max_message));
        crypto::SecretBytes answer(static_cast<size_t>(size));
        MutBytes const to = answer.expose_mutable();
        std::memcpy(to.data(), header.data(), header.size());
        MutBytes const rest = to.subspan(header.size());
        TRY(wait(deadline, "receiving an answer",
                 [&](auto done) { asio::async_read(m_stream, asio::buffer(rest.data(), rest.size()), done); }));
        return answer;
    }

    ConnectReport const& report() const noexcept override { return m_report; }

private:
    Error failed(ErrorCode code, std::string_view what) const {
        return make_error(code, "{} {}", m_endpoint.to_string(), what);
    }

    // Starts one operation and runs it to its end, or to the deadline.
    template <class Start>
    Result<void> wait(Nanoseconds deadline, std::string_view doing, Start start) {
        std::optional<error_code> result;
        crypto::forget_tls_errors();
        start([&result](error_code error, auto&&...) { result = error; });
        m_io.restart();
        m_io.run_for(std::chrono::nanoseconds(std::max<Nanoseconds>(deadline - monotonic_now(), 0)));
        if (!result) {
            // The handler refers to this frame: it has to have run before this returns.
            error_code ignored;
            m_stream.lowest_layer().close(ignored);
            m_io.restart();
            m_io.run();
            return failed(ErrorCode::Timeout, fmt::format("did not keep the time limit while {}", doing));
        }
        if (*result)
            return failed(ErrorCode::KeyUnavailable, fmt::format("failed while {}: {}", doing, result->message()));
        return {};
    }

    Result<void> connect(Resolver const& resolver, Nanoseconds deadline) {
        std::vector<std::string> addresses{m_endpoint.host};
        if (!is_address(m_endpoint.host)) addresses = TRY(resolver(m_endpoint.host));
        auto tried = Result<void>(failed(ErrorCode::KeyUnavailable, "has no address"));
        for (size_t i = 0; i < addresses.size() && !tried; ++i) {
            error_code error;
            auto address = asio::ip::make_address(addresses[i], error);
            if (error) continue;
            // An address that does not answer leaves time for the others.
            auto const now = monotonic_now();
            auto const share = (deadline - now) / static_cast<Nanoseconds>(addresses.size() - i);
            asio::ip::tcp::socket fresh(m_io);
            m_stream.next_layer() = std::move(fresh);
            tried = wait(now + share, "connecting", [&](auto done) {
                m_stream.lowest_layer().async_connect({address, m_endpoint.port}, done);
            });
        }
        TRY(std::move(tried));
        error_code ignored; // only speed is lost
        m_stream.lowest_layer().set_option(asio::ip::tcp::no_delay(true), ignored);
        auto remote = m_stream.lowest_layer().remote_endpoint(ignored);
        m_report.address = remote.address().to_string();
        return {};
    }

    Result<void> handshake(std::optional<crypto::Digest> const& pin, Nanoseconds deadline) {
        auto* tls = m_stream.native_handle();
        auto const named = m_endpoint.to_string();
        TRY_CONTEXT(crypto::expect_tls_peer(tls, m_endpoint.host,
                                            is_address(m_endpoint.host) ? crypto::TlsPeerKind::Address
                                                                        : crypto::TlsPeerKind::Name),
                    named);
        auto done =
            wait(deadline, "setting up TLS", [&](auto handler) { m_stream.async_handshake(Stream::client, handler); });
        // Asked for first: the error of the handshake says only that verification failed.
        TRY_CONTEXT(crypto::check_tls_verdict(tls), named);
        TRY(std::move(done));
        TRY_CONTEXT(crypto::check_tls_pin(tls, pin), named);
        m_report.protocol = crypto::describe_tls(tls);
        return {};
    }

    asio::io_context m_io{1}; // one thread
    asio::ssl::context m_context;
    Stream m_stream;
    Endpoint m_endpoint;
    ConnectReport m_report;
};

} // namespace

Result<void> check_identity(TlsIdentity const& identity) {
    TRY(crypto::make_tls_client_context(identity));
    return {};
}

Result<Connector> make_tls_connector(TlsIdentity const& identity, Resolver resolver) {
    auto context = TRY(crypto::make_tls_client_context(identity));
    return Connector([context = std::move(context), pin = identity.pin, resolver = std::move(resolver)](
                         Endpoint const& endpoint, Nanoseconds deadline) -> Result<std::unique_ptr<Connection>> {
        try {
            auto connection = std::make_unique<TlsConnection>(context, endpoint);
            TRY(connection->open(resolver, pin, deadline));
            return std::unique_ptr<Connection>(std::move(connection));
        } catch (boost::system::system_error const& error) {
            // Asio's constructors throw where the host gives no descriptors or memory.
            return make_error(ErrorCode::Io, "cannot make a connection: {}", error.what());
        }
    });
}

} // namespace coffer::kmip
