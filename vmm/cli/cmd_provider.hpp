// The parts of `coffer provider`, a file each.
#pragma once

#include "vmm/cli/context.hpp"

namespace coffer::cli {

// Below `provider add`.
void register_provider_kmip(CLI::App& add, Context& context);
// Below `provider`: show, test, default, remove.
void register_provider_manage(CLI::App& provider, Context& context);

} // namespace coffer::cli
