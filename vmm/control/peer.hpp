// Addresses of local sockets, and who is at the other end of one.
#pragma once

#include <string_view>
#include <sys/un.h>

#include "base/result.hpp"

namespace coffer::vmm::control {

// InvalidArgument where the path does not fit sun_path.
Result<sockaddr_un> unix_address(std::string_view path);

// Permission unless the process at the other end is of this process's user (SO_PEERCRED, socket(7)): as it was when it
// connected, or, at a client's end, when the server began to listen.
Result<void> check_peer(int socket);

} // namespace coffer::vmm::control
