// The process that holds one connection to another host, once both ends have accepted each other.
#pragma once

#include "base/result.hpp"

namespace coffer::vmm {

// From here on it reads and writes what it has open, and opens nothing: seccomp(2).
Result<void> enter_pump_sandbox();

} // namespace coffer::vmm
