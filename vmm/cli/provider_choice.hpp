// Which key provider a home comes under.
#pragma once

#include <string>

#include "keyprovider/registry.hpp"

namespace coffer::cli {

// The provider that was named (--provider), the default, or the only one there is. InvalidArgument, with the line that
// says what to do, where that is none or several.
Result<ProviderInfo> choose_provider(ProviderRegistry const& registry, std::string const& named);

} // namespace coffer::cli
