// The servers of one KMIP cluster: which one is asked, when it is asked again after a failure, and the one connection
// that is kept between requests.
#pragma once

#include <vector>

#include "keyprovider/kmip/client/connection.hpp"
#include "keyprovider/kmip/client/messages.hpp"

namespace coffer::kmip {

// Time limits. A request that the first server does not answer goes to the next one, until the total is used up.
struct Limits {
    Nanoseconds connect = 5 * k_ns_per_s; // TCP and TLS
    Nanoseconds exchange = 8 * k_ns_per_s;
    Nanoseconds total = 30 * k_ns_per_s;
    // A server that failed twice on end is left alone for so long, and twice as long after each further failure.
    Nanoseconds first_pause = 1 * k_ns_per_s;
    Nanoseconds longest_pause = 60 * k_ns_per_s;
};

// What a request is called. Setting an attribute is another operation in KMIP 2.0 than before, and the servers of a
// cluster need not speak the same version.
class RequestOperation {
public:
    RequestOperation(Operation operation) : RequestOperation(operation, operation) {} // NOLINT: it is one
    RequestOperation(Operation before_2_0, Operation by_tag) : m_before_2_0(before_2_0), m_by_tag(by_tag) {}
    Operation in(VersionTraits const& traits) const { return traits.attributes_by_tag ? m_by_tag : m_before_2_0; }

private:
    Operation m_before_2_0;
    Operation m_by_tag;
};

struct EndpointHealth {
    Endpoint endpoint;
    std::optional<ProtocolVersion> version; // negotiated; remembered while the object lives
    unsigned failures = 0;                  // since the last answer
    Nanoseconds pause_until = 0;            // monotonic; not asked until then
    std::string last_error;
};

// Not thread-safe.
class Cluster {
public:
    // `forced`: the one version to speak; otherwise the best of k_versions that each server has.
    Cluster(std::vector<Endpoint> endpoints, std::optional<ProtocolVersion> forced, Connector connector,
            Limits limits = {});

    // A server's answer to the request, or its refusal. Servers are asked in order, the connected one first, those that
    // failed lately last and those whose pause is not over not at all; one that fails in the middle of a request is
    // left for the next one, so that a request may be carried out twice. KeyUnavailable, with what each server did,
    // where none answers.
    Result<std::variant<Answer, Refusal>> call(RequestOperation operation, PayloadWriter const& payload);

    // Connects and negotiates where that is not done yet.
    Result<void> connect();
    // Of the connected server, after a success.
    ConnectReport const& report() const { return m_connection->report(); }
    EndpointHealth const& current() const { return m_health[m_current]; }
    std::vector<EndpointHealth> const& health() const noexcept { return m_health; }

private:
    std::vector<size_t> order(Nanoseconds now) const;
    // All work with one server: `request` null only connects.
    struct Request {
        RequestOperation operation;
        PayloadWriter const& payload;
    };
    Result<std::optional<std::variant<Answer, Refusal>>> try_servers(Request const* request);
    Result<std::optional<std::variant<Answer, Refusal>>> try_server(size_t index, Request const* request,
                                                                    Nanoseconds deadline);
    Result<void> open(size_t index, Nanoseconds deadline);
    Result<ProtocolVersion> negotiate(Nanoseconds deadline);
    Result<std::variant<Answer, Refusal>> exchange(VersionTraits const& traits, Request const& request,
                                                   Nanoseconds deadline);

    std::vector<EndpointHealth> m_health;
    std::optional<ProtocolVersion> m_forced;
    Connector m_connector;
    Limits m_limits;
    std::unique_ptr<Connection> m_connection;
    size_t m_current = 0; // whose connection that is
    uint64_t m_next_id = 1;
};

} // namespace coffer::kmip
