// What the keeper may ask of the host's kernel: read files, talk to the terminal and on the descriptors it has.
#pragma once

#include "base/result.hpp"

namespace coffer::vmm::keeper {

// For the rest of the process's life; a call outside of the list ends the process. Unsupported where the kernel has no
// seccomp filters.
Result<void> enter_sandbox();

} // namespace coffer::vmm::keeper
