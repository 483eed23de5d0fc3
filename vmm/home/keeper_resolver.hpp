// Name resolution for the keeper: a process of its own, since the host's resolver loads libraries, makes sockets of all
// kinds and may take minutes, none of which the keeper's sandbox and time limits allow. It holds no key and learns the
// names of key servers alone.
#pragma once

#include "base/file.hpp"
#include "keyprovider/kmip/client/endpoint.hpp"

namespace coffer::vmm::keeper {

class ResolverProcess {
public:
    // Before the sandbox, and before this process has secrets, which the new one would have copies of. The process ends
    // when this one does.
    static Result<ResolverProcess> start();

    // KeyUnavailable where the name has no address or the answer takes longer than a few seconds. After the latter the
    // process is given up: later names fail at once.
    Result<std::vector<std::string>> resolve(std::string const& host);

private:
    explicit ResolverProcess(UniqueFd socket) : m_socket(std::move(socket)) {}

    UniqueFd m_socket;
};

} // namespace coffer::vmm::keeper
