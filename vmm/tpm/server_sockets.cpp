#include "vmm/tpm/server_sockets.hpp"

#include <cerrno>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace coffer::vmm {

namespace {

// Clients are served one at a time; so many more may wait.
constexpr int k_backlog = 16;
constexpr char const* k_data = "data";
constexpr char const* k_control = "ctrl";

Result<UniqueFd> make_socket(int family) {
    UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd.valid()) return errno_error(errno, "cannot make a socket");
    return fd;
}

Result<UniqueFd> listen_on_loopback(uint16_t port) {
    auto fd = TRY(make_socket(AF_INET));
    int const on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    // Clients inherit it: no response waits for an acknowledgement.
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    // SAFETY: the sockets API takes any address type by a pointer to its common head.
    auto const* generic = reinterpret_cast<sockaddr const*>(&address);
    if (::bind(fd.get(), generic, sizeof address) != 0 || ::listen(fd.get(), k_backlog) != 0) {
        if (errno == EADDRINUSE)
            return make_error(ErrorCode::Busy, "port {} of 127.0.0.1 is in use: give --tcp another one", port);
        return errno_error(errno, fmt::format("cannot listen on port {} of 127.0.0.1", port));
    }
    return fd;
}

Result<sockaddr_un> unix_address(std::filesystem::path const& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.native().size() >= sizeof address.sun_path)
        return make_error(ErrorCode::InvalidArgument, "{} is too long for a socket's name ({} bytes at most)",
                          path.native(), sizeof address.sun_path - 1);
    path.native().copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
}

Result<UniqueFd> listen_at(std::filesystem::path const& path) {
    auto address = TRY(unix_address(path));
    // SAFETY: as above.
    auto const* generic = reinterpret_cast<sockaddr const*>(&address);
    struct stat info {};
    if (::lstat(path.c_str(), &info) == 0) {
        if (!S_ISSOCK(info.st_mode))
            return make_error(ErrorCode::AlreadyExists, "{} is there already, and is no socket", path.native());
        auto probe = TRY(make_socket(AF_UNIX));
        if (::connect(probe.get(), generic, sizeof address) == 0 || errno != ECONNREFUSED)
            return make_error(ErrorCode::Busy, "another process listens on {}", path.native());
        if (::unlink(path.c_str()) != 0) return errno_error(errno, fmt::format("cannot replace {}", path.native()));
    }
    auto fd = TRY(make_socket(AF_UNIX));
    auto const before = ::umask(0177);
    bool const bound = ::bind(fd.get(), generic, sizeof address) == 0;
    int const reason = errno;
    ::umask(before);
    if (!bound) return errno_error(reason, fmt::format("cannot make the socket {}", path.native()));
    if (::listen(fd.get(), k_backlog) != 0)
        return errno_error(errno, fmt::format("cannot listen on {}", path.native()));
    return fd;
}

} // namespace

Result<TpmSockets> TpmSockets::on_loopback(uint16_t port) {
    if (port == 0 || port == UINT16_MAX)
        return make_error(ErrorCode::InvalidArgument, "port {} and the next one cannot both be used", port);
    TpmSockets sockets;
    sockets.data = TRY(listen_on_loopback(port));
    sockets.control = TRY(listen_on_loopback(static_cast<uint16_t>(port + 1)));
    return sockets;
}

Result<TpmSockets> TpmSockets::in_folder(std::filesystem::path const& folder) {
    TRY(make_folders(folder));
    TpmSockets sockets;
    sockets.control = TRY(listen_at(folder / k_control));
    auto data = listen_at(folder / k_data);
    if (!data) {
        ::unlink((folder / k_control).c_str());
        return std::move(data).error();
    }
    sockets.data = std::move(*data);
    sockets.m_folder = folder;
    return sockets;
}

TpmSockets::~TpmSockets() {
    if (m_folder.empty() || !data.valid()) return; // TCP, or moved from
    ::unlink((m_folder / k_data).c_str());
    ::unlink((m_folder / k_control).c_str());
}

} // namespace coffer::vmm
