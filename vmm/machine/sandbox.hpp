// What the guest-facing process may still ask of the host's kernel once the guest runs.
//
// A guest that breaks out of a device or of the software CPU finds a process that cannot start programs, make sockets,
// trace others, change its identity, or make new executable memory. Files stay reachable: the home is replaced file by
// file (see docs/threat-model.md for what this does not hold off).
#pragma once

#include "base/result.hpp"

namespace coffer::vmm {

// For all threads of the process, now and later, and not to be undone. Unsupported where the kernel has no seccomp.
Result<void> enter_sandbox();

} // namespace coffer::vmm
