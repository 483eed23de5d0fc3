// What every coffer process does first, so that no key reaches a core file or another process of the same user.
#pragma once

#include "base/result.hpp"

namespace coffer::vmm {

// No core dumps (RLIMIT_CORE 0), not to be attached to or read through /proc by others of the same user
// (PR_SET_DUMPABLE 0), and no new privileges through programs it starts (PR_SET_NO_NEW_PRIVS).
Result<void> forbid_dumps();

} // namespace coffer::vmm
