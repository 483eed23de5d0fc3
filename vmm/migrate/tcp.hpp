// TCP between hosts: places, connecting, listening. A connection that is cut is noticed within half a minute, whoever
// is silent.
#pragma once

#include <string>
#include <string_view>

#include "base/clock.hpp"
#include "base/file.hpp"

namespace coffer::vmm {

// "host:port", "[IPv6 address]:port".
struct TcpPlace {
    std::string host; // a name, or an address without brackets
    uint16_t port = 0;

    // InvalidArgument where the text is not of the forms above.
    static Result<TcpPlace> parse(std::string_view text);
    std::string to_string() const;
};

// Tries the name's addresses one after the other, `limit` each. NotFound where the name has none; Timeout, Io.
Result<UniqueFd> connect_tcp(TcpPlace const& place, Nanoseconds limit);

// On the first of the name's addresses. Port 0 is any that is free. Busy where another process listens there.
Result<UniqueFd> listen_tcp(TcpPlace const& place);
// Where it listens.
Result<TcpPlace> local_place(int socket);
// The next connection and who it is from. Timeout where none comes within `limit`.
struct Accepted {
    UniqueFd socket;
    std::string from;
};
Result<Accepted> accept_tcp(int listener, Nanoseconds limit);

} // namespace coffer::vmm
