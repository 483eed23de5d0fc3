// What of a root is under a key provider, and under which of its keys: VMs, and the certificate authority.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

struct ProviderUser {
    std::string vm;
    std::string key_id; // of the key provider
};

struct ProviderUsers {
    std::vector<ProviderUser> known;
    std::vector<std::string> unreadable; // VMs whose homes do not say what they are under
    // The key that the host's certificate authority is under, where that is one of this provider's.
    std::optional<std::string> authority_key;
};

// Looks at every home. None of it is authenticated: what is said of removal errs on the side of keeping.
Result<ProviderUsers> users_of_provider(vmm::HomeRoot const& root, Uuid const& provider);

// The VMs of the list, "a, b, c".
std::string names_of(std::vector<ProviderUser> const& users);
std::string join(std::vector<std::string> const& names);

} // namespace coffer::cli
