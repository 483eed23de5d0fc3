#include "vmm/migrate/tcp.hpp"

#include <array>
#include <cerrno>
#include <charconv>
#include <memory>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <optional>
#include <poll.h>
#include <sys/socket.h>

#include <fmt/format.h>

namespace coffer::vmm {

namespace {

struct FreeAddresses {
    void operator()(addrinfo* list) const noexcept { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

Result<Addresses> resolve(TcpPlace const& place, bool to_listen) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV | (to_listen ? AI_PASSIVE : 0);
    addrinfo* list = nullptr;
    int const failed = ::getaddrinfo(place.host.c_str(), std::to_string(place.port).c_str(), &hints, &list);
    if (failed != 0)
        return make_error(ErrorCode::NotFound, "no address is known of '{}': {}", place.host, ::gai_strerror(failed));
    return Addresses(list);
}

Result<void> set(int socket, int level, int option, int value) {
    if (::setsockopt(socket, level, option, &value, sizeof value) == 0) return {};
    return errno_error(errno, "cannot set a TCP socket up");
}

// Of a connection: found dead after 10 s of silence and three probes, or 20 s after what was sent is not acknowledged.
Result<void> watch_connection(int socket) {
    TRY(set(socket, SOL_SOCKET, SO_KEEPALIVE, 1));
    TRY(set(socket, IPPROTO_TCP, TCP_KEEPIDLE, 10));
    TRY(set(socket, IPPROTO_TCP, TCP_KEEPINTVL, 5));
    TRY(set(socket, IPPROTO_TCP, TCP_KEEPCNT, 3));
    TRY(set(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, 20'000));
    return set(socket, IPPROTO_TCP, TCP_NODELAY, 1);
}

Result<UniqueFd> connect_one(addrinfo const& address, TcpPlace const& place, Nanoseconds limit) {
    UniqueFd socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) return errno_error(errno, "cannot make a TCP socket");
    auto failed = [&](int error) { return errno_error(error, fmt::format("cannot connect to {}", place.to_string())); };
    if (::connect(socket.get(), address.ai_addr, address.ai_addrlen) != 0) {
        if (errno != EINPROGRESS) return failed(errno);
        pollfd watched{socket.get(), POLLOUT, 0};
        int const ready = ::poll(&watched, 1, static_cast<int>(limit / k_ns_per_ms));
        if (ready == 0) return make_error(ErrorCode::Timeout, "{} does not answer", place.to_string());
        int error = 0;
        socklen_t size = sizeof error;
        if (ready < 0 || ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) return failed(errno);
        if (error != 0) return failed(error);
    }
    TRY(watch_connection(socket.get()));
    return socket;
}

Result<TcpPlace> place_of(sockaddr_storage const& address, socklen_t size) {
    std::array<char, NI_MAXHOST> host{};
    std::array<char, NI_MAXSERV> port{};
    // SAFETY: the sockets API takes any address type by a pointer to its common head.
    if (::getnameinfo(reinterpret_cast<sockaddr const*>(&address), size, host.data(), host.size(), port.data(),
                      port.size(), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return make_error(ErrorCode::Io, "a TCP address cannot be told");
    return TcpPlace{host.data(), static_cast<uint16_t>(std::atoi(port.data()))};
}

} // namespace

Result<TcpPlace> TcpPlace::parse(std::string_view text) {
    auto bad = [&] {
        return make_error(ErrorCode::InvalidArgument, "'{}' is no HOST:PORT (of an IPv6 address, [ADDRESS]:PORT)",
                          text);
    };
    auto const colon = text.rfind(':');
    if (colon == std::string_view::npos) return bad();
    auto host = text.substr(0, colon);
    auto const port = text.substr(colon + 1);
    bool const bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
    if (bracketed) host = host.substr(1, host.size() - 2);
    if (host.empty() || host.size() > 255 || (!bracketed && host.find_first_of(":[]") != std::string_view::npos))
        return bad();
    TcpPlace place{std::string(host), 0};
    auto const [end, error] = std::from_chars(port.data(), port.data() + port.size(), place.port);
    if (error != std::errc() || end != port.data() + port.size()) return bad();
    return place;
}

std::string TcpPlace::to_string() const {
    return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

Result<UniqueFd> connect_tcp(TcpPlace const& place, Nanoseconds limit) {
    auto addresses = TRY(resolve(place, false));
    std::optional<Error> last;
    for (auto* one = addresses.get(); one; one = one->ai_next) {
        auto socket = connect_one(*one, place, limit);
        if (socket) return socket;
        last = std::move(socket).error();
    }
    return std::move(*last);
}

Result<UniqueFd> listen_tcp(TcpPlace const& place) {
    auto addresses = TRY(resolve(place, true));
    UniqueFd socket(::socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.valid()) return errno_error(errno, "cannot make a TCP socket");
    TRY(set(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1));
    if (::bind(socket.get(), addresses->ai_addr, addresses->ai_addrlen) != 0 || ::listen(socket.get(), 16) != 0) {
        if (errno == EADDRINUSE)
            return make_error(ErrorCode::Busy, "another process listens on {} already", place.to_string());
        return errno_error(errno, fmt::format("cannot listen on {}", place.to_string()));
    }
    return socket;
}

Result<TcpPlace> local_place(int socket) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    // SAFETY: as in place_of().
    if (::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0)
        return errno_error(errno, "a socket's address cannot be told");
    return place_of(address, size);
}

Result<Accepted> accept_tcp(int listener, Nanoseconds limit) {
    pollfd watched{listener, POLLIN, 0};
    int const ready = ::poll(&watched, 1, static_cast<int>(limit / k_ns_per_ms));
    if (ready < 0 && errno != EINTR) return errno_error(errno, "cannot wait for connections");
    if (ready <= 0) return make_error(ErrorCode::Timeout, "no connection");
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    // SAFETY: as in place_of().
    UniqueFd socket(::accept4(listener, reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
        // A client that is gone again, or no descriptors for the moment: the next one may fare better.
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
            return errno_error(errno, "cannot take a connection");
        return make_error(ErrorCode::Timeout, "no connection");
    }
    TRY(watch_connection(socket.get()));
    auto from = TRY(place_of(address, size));
    return Accepted{std::move(socket), from.to_string()};
}

} // namespace coffer::vmm
