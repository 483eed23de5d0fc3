#include "vmm/control/peer.hpp"

#include <cerrno>
#include <sys/socket.h>
#include <unistd.h>

namespace coffer::vmm::control {

Result<sockaddr_un> unix_address(std::string_view path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return make_error(ErrorCode::InvalidArgument, "{} is too long for a socket's name ({} bytes at most)", path,
                          sizeof address.sun_path - 1);
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
}

Result<void> check_peer(int socket) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || size != sizeof peer)
        return errno_error(errno, "cannot tell who is at the other end of a VM's control socket");
    if (peer.uid != ::geteuid())
        return make_error(ErrorCode::Permission,
                          "the process {} at the other end of the VM's control socket is of user {}, not of user {}",
                          peer.pid, peer.uid, ::geteuid());
    return {};
}

} // namespace coffer::vmm::control
