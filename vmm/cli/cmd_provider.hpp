// The parts of `coffer provider`, a file each.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "vmm/cli/context.hpp"

namespace coffer::cli {

// What JSON says of a native provider besides what it says of any.
void add_native_json(nlohmann::json& json, ProviderInfo const& info);

// Below `provider add`.
void register_provider_add_native(CLI::App& add, Context& context);
void register_provider_kmip(CLI::App& add, Context& context);
// Below `provider`: rotate, prune, backup, restore, set.
void register_provider_native(CLI::App& provider, Context& context);
// Below `provider`: show, test, default, remove.
void register_provider_manage(CLI::App& provider, Context& context);

} // namespace coffer::cli
