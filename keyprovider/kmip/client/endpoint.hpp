// A KMIP server's place: "host:port", "host", "[IPv6 address]:port". The port is 5696 where none is given (IANA).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.hpp"

namespace coffer::kmip {

constexpr uint16_t k_default_port = 5696;

struct Endpoint {
    std::string host; // a name, or an address without brackets
    uint16_t port = k_default_port;

    // InvalidArgument where the text is not of the forms above.
    static Result<Endpoint> parse(std::string_view text);
    std::string to_string() const;
};

// Gives the addresses of a name as text, most wanted first; addresses themselves are never asked for.
using Resolver = std::function<Result<std::vector<std::string>>(std::string const& host)>;
// By the host's own resolver, which may take long and loads what it likes into the process.
Result<std::vector<std::string>> resolve_here(std::string const& host);

} // namespace coffer::kmip
