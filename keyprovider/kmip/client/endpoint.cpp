#include "keyprovider/kmip/client/endpoint.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <memory>

#include <netdb.h>
#include <sys/socket.h>

namespace coffer::kmip {

namespace {
constexpr size_t k_max_host = 253; // RFC 1035 section 2.3.4
constexpr size_t k_max_addresses = 16;

bool host_character(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
           c == '_' || c == ':' || c == '%';
}
} // namespace

Result<Endpoint> Endpoint::parse(std::string_view text) {
    auto wrong = [&] {
        return make_error(ErrorCode::InvalidArgument,
                          "'{}' is no endpoint: give HOST:PORT, or [ADDRESS]:PORT for an IPv6 address", text);
    };
    Endpoint endpoint;
    std::string_view port;
    bool has_port = false;
    if (text.starts_with('[')) {
        auto close = text.find(']');
        if (close == std::string_view::npos) return wrong();
        endpoint.host = text.substr(1, close - 1);
        auto rest = text.substr(close + 1);
        has_port = rest.starts_with(':');
        if (!has_port && !rest.empty()) return wrong();
        if (has_port) port = rest.substr(1);
    } else {
        auto colon = text.find(':');
        if (colon != text.rfind(':')) return wrong();
        has_port = colon != std::string_view::npos;
        endpoint.host = text.substr(0, colon);
        if (has_port) port = text.substr(colon + 1);
    }
    if (endpoint.host.empty() || endpoint.host.size() > k_max_host || endpoint.host.front() == '-' ||
        !std::all_of(endpoint.host.begin(), endpoint.host.end(), host_character))
        return wrong();
    if (has_port) {
        auto parsed = std::from_chars(port.data(), port.data() + port.size(), endpoint.port);
        if (parsed.ec != std::errc{} || parsed.ptr != port.data() + port.size() || endpoint.port == 0) return wrong();
    }
    return endpoint;
}

std::string Endpoint::to_string() const {
    bool const brackets = host.find(':') != std::string::npos;
    return fmt::format("{}{}{}:{}", brackets ? "[" : "", host, brackets ? "]" : "", port);
}

Result<std::vector<std::string>> resolve_here(std::string const& host) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_ADDRCONFIG;
    addrinfo* found = nullptr;
    int const failed = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
    if (failed != 0)
        return make_error(ErrorCode::KeyUnavailable, "cannot find the address of {}: {}", host, ::gai_strerror(failed));
    std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
    std::vector<std::string> addresses;
    for (auto const* entry = found; entry && addresses.size() < k_max_addresses; entry = entry->ai_next) {
        std::array<char, NI_MAXHOST> text{};
        if (::getnameinfo(entry->ai_addr, entry->ai_addrlen, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) == 0)
            addresses.emplace_back(text.data());
    }
    return addresses;
}

} // namespace coffer::kmip
