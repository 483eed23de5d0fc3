// A native provider's keys are on one disk until someone backs them up: said once a day, not at every command.
#pragma once

#include "keyprovider/provider_info.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::cli {

// Warns of each provider of the root that lacks a backup, where that was not done in the last 24 hours.
void remind_of_backups(vmm::HomeRoot const& root);
// The same for the VM's provider alone.
void remind_of_backup(vmm::HomeLocation const& location);

} // namespace coffer::cli
