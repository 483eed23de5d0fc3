#include "keyprovider/kmip/client/cluster.hpp"

namespace coffer::kmip {

namespace {

// Versions of a DiscoverVersions answer that are looked at.
constexpr size_t k_max_versions = 64;

} // namespace

Cluster::Cluster(std::vector<Endpoint> endpoints, std::optional<ProtocolVersion> forced, Connector connector,
                 Limits limits)
    : m_forced(forced), m_connector(std::move(connector)), m_limits(limits) {
    for (auto& endpoint : endpoints) m_health.push_back({std::move(endpoint), std::nullopt, 0, 0, {}});
    COFFER_ASSERT(!m_health.empty());
    COFFER_ASSERT(!m_forced || find_version(*m_forced));
}

std::vector<size_t> Cluster::order(Nanoseconds now) const {
    std::vector<size_t> indices;
    for (size_t i = 0; i < m_health.size(); ++i)
        if (m_health[i].pause_until <= now) indices.push_back(i);
    auto rank = [&](size_t index) {
        if (m_connection && index == m_current) return 0;
        return m_health[index].failures == 0 ? 1 : 2;
    };
    std::stable_sort(indices.begin(), indices.end(), [&](size_t a, size_t b) { return rank(a) < rank(b); });
    return indices;
}

Result<std::variant<Answer, Refusal>> Cluster::call(RequestOperation operation, PayloadWriter const& payload) {
    Request const request{operation, payload};
    auto answer = TRY(try_servers(&request));
    return std::move(*answer);
}

Result<void> Cluster::connect() {
    TRY(try_servers(nullptr));
    return {};
}

Result<std::optional<std::variant<Answer, Refusal>>> Cluster::try_servers(Request const* request) {
    auto const begun = monotonic_now();
    auto const deadline = begun + m_limits.total;
    for (size_t index : order(begun)) {
        if (monotonic_now() >= deadline) break;
        auto done = try_server(index, request, deadline);
        auto& health = m_health[index];
        if (done) {
            health.failures = 0;
            health.last_error.clear();
            return done;
        }
        m_connection.reset();
        // A mistake in the request itself is not the server's.
        if (done.error().code() == ErrorCode::Internal) return done;
        health.last_error = done.error().message();
        if (++health.failures == 1) continue;
        auto const pause = std::min(m_limits.longest_pause, m_limits.first_pause << std::min(health.failures - 2, 16U));
        health.pause_until = monotonic_now() + pause;
    }
    std::string failures;
    for (auto const& health : m_health) {
        failures += fmt::format("{}{}", failures.empty() ? "" : "; ", health.last_error);
        if (health.pause_until > begun && !health.last_error.empty())
            failures += fmt::format(" (not asked again for {} ms)",
                                    std::max<Nanoseconds>((health.pause_until - monotonic_now()) / k_ns_per_ms, 0));
    }
    return make_error(ErrorCode::KeyUnavailable, "no KMIP server answers: {}", failures);
}

Result<std::optional<std::variant<Answer, Refusal>>> Cluster::try_server(size_t index, Request const* request,
                                                                         Nanoseconds deadline) {
    bool const reused = m_connection && m_current == index;
    if (!reused) TRY(open(index, deadline));
    if (!request) return std::optional<std::variant<Answer, Refusal>>();
    auto run = [&] {
        return exchange(*find_version(*m_health[index].version), *request,
                        std::min(deadline, monotonic_now() + m_limits.exchange));
    };
    auto answer = run();
    // Servers close connections that were idle, which shows at the next request only.
    if (!answer && reused && answer.error().code() == ErrorCode::KeyUnavailable) {
        TRY(open(index, deadline));
        answer = run();
    }
    return std::optional(TRY(std::move(answer)));
}

Result<void> Cluster::open(size_t index, Nanoseconds deadline) {
    auto& health = m_health[index];
    m_connection.reset();
    m_connection = TRY(m_connector(health.endpoint, std::min(deadline, monotonic_now() + m_limits.connect)));
    m_current = index;
    if (m_forced) health.version = *m_forced;
    if (!health.version)
        health.version = TRY_CONTEXT(negotiate(std::min(deadline, monotonic_now() + m_limits.exchange)),
                                     health.endpoint.to_string());
    return {};
}

Result<ProtocolVersion> Cluster::negotiate(Nanoseconds deadline) {
    PayloadWriter const payload = [](Writer& writer, VersionTraits const&) {
        for (auto const& traits : k_versions) {
            writer.begin(Tag::ProtocolVersion);
            writer.integer(Tag::ProtocolVersionMajor, traits.version.major);
            writer.integer(Tag::ProtocolVersionMinor, traits.version.minor);
            writer.end();
        }
    };
    auto result = TRY(exchange(k_first_version, {Operation::DiscoverVersions, payload}, deadline));
    if (auto const* refusal = std::get_if<Refusal>(&result))
        return make_error(ErrorCode::Unsupported, "the server does not tell its KMIP versions: {} (reason {:#x})",
                          refusal->text, static_cast<uint32_t>(refusal->reason));
    VersionTraits const* best = nullptr;
    std::string offered;
    size_t count = 0;
    for (Item item : std::get<Answer>(result).payload) {
        if (item.tag != Tag::ProtocolVersion) continue;
        if (++count > k_max_versions) break;
        auto fields = TRY(item.structure());
        auto const major = TRY(fields.require_integer(Tag::ProtocolVersionMajor));
        auto const minor = TRY(fields.require_integer(Tag::ProtocolVersionMinor));
        offered += fmt::format("{}{}.{}", offered.empty() ? "" : ", ", major, minor);
        for (auto const& traits : k_versions)
            if (traits.version.major == major && traits.version.minor == minor &&
                (!best || traits.version > best->version))
                best = &traits;
    }
    if (!best)
        return make_error(ErrorCode::Unsupported, "the server speaks KMIP {}, none of which coffer speaks",
                          offered.empty() ? "in no version" : offered);
    return best->version;
}

Result<std::variant<Answer, Refusal>> Cluster::exchange(VersionTraits const& traits, Request const& request,
                                                        Nanoseconds deadline) {
    RequestId const id{request.operation.in(traits), m_next_id++};
    auto message = TRY(encode_request(traits, id, request.payload));
    return decode_response(TRY(m_connection->exchange(message.expose(), deadline)), id);
}

} // namespace coffer::kmip
