// What the keeper may ask of the host's kernel: read files, talk to the terminal and on the descriptors it has; and
// make TCP connections where a key provider of this host is a server; and change files where the keeper's work is to
// make or change a provider.
#pragma once

#include "base/result.hpp"

namespace coffer::vmm::keeper {

enum class Network { None, TcpClient };
enum class Files { Read, Change };

// For the rest of the process's life; a call outside of the list ends the process. Unsupported where the kernel has no
// seccomp filters.
Result<void> enter_sandbox(Network network, Files files);

} // namespace coffer::vmm::keeper
