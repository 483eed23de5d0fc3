// One connection to one KMIP server, as the client sees it; tls_connection.hpp has the real one.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.hpp"
#include "crypto/secret.hpp"
#include "keyprovider/kmip/client/endpoint.hpp"

namespace coffer::kmip {

// Of a request or an answer, TTLV header included. Answers lie in secret memory, which bounds them.
constexpr size_t k_max_message = size_t{32} << 10;

// How a connection came to be.
struct ConnectReport {
    std::string address;          // that was connected to
    std::string protocol;         // TLS version and cipher suite
    Nanoseconds connect_time = 0; // name resolution and TCP
    Nanoseconds tls_time = 0;
};

// Not thread-safe.
class Connection {
public:
    virtual ~Connection() = default;

    // Sends a request and receives one answer, whole; both before the deadline (monotonic_now()), however slowly the
    // bytes come. After an error the connection is of no further use. Timeout, KeyUnavailable, Corrupt.
    virtual Result<crypto::SecretBytes> exchange(Bytes request, Nanoseconds deadline) = 0;
    virtual ConnectReport const& report() const noexcept = 0;
};

using Connector = std::function<Result<std::unique_ptr<Connection>>(Endpoint const&, Nanoseconds deadline)>;

} // namespace coffer::kmip
