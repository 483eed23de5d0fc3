// Keeps a provider's keys from being removed between the moment that a VM's key is made and the one where the VM's home
// names it.
#pragma once

#include <filesystem>

#include "base/file.hpp"

namespace coffer {

enum class ProviderUse : uint8_t {
    Shared,    // new keys are made and used; waits while the provider is changed
    Exclusive, // keys are added or removed; Busy while another process has either
};

// Held while the descriptor is open. KeyUnavailable where the provider is gone.
Result<UniqueFd> lock_provider(std::filesystem::path const& folder, ProviderUse use);

} // namespace coffer
