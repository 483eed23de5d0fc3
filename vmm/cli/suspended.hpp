// What the verbs that take a VM as it is on its disks say of one that is suspended.
#pragma once

#include "vmm/home/home_session.hpp"

namespace coffer::cli {

// Busy where the VM is suspended: half of what it is lies in its memory. `wanted` ends the sentence "power it off
// before ...".
Result<void> refuse_suspended(vmm::HomeSession& home, std::string_view wanted);

// Whether it has snapshots. Suspended or not makes no difference.
Result<bool> has_snapshots(vmm::HomeSession& home);

} // namespace coffer::cli
