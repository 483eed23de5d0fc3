// Requests to a VM's process that take long: how far they are is shown, and the first Ctrl-C (or SIGTERM, or SIGHUP)
// gives them up, with the VM where it is; a second one ends this process.
#pragma once

#include "vmm/cli/progress.hpp"
#include "vmm/control/client.hpp"

namespace coffer::cli {

// Of the whole process, from here on. Once.
void watch_for_cancel();
bool is_cancelled() noexcept;

// For requests that answer when they are done, however long that takes. `line` outlives the call.
vmm::control::CallOptions long_call(ProgressLine& line);

} // namespace coffer::cli
