// coffer ca
#pragma once

#include "vmm/cli/context.hpp"

namespace coffer::cli {

void register_ca(CLI::App& app, Context& context);

} // namespace coffer::cli
