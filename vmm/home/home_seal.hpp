// Under what a home is encrypted: its bundle key, and that key as a provider wrapped it.
#pragma once

#include "base/file.hpp"
#include "crypto/keys.hpp"
#include "keyprovider/key_provider.hpp"

namespace coffer::vmm {

struct HomeSeal {
    Uuid provider;
    KeyId key_id;
    WrappedKey wrapped;
    crypto::BundleKey key;
    // Shared, where the provider has keys that could be removed meanwhile: held until a home names the key.
    UniqueFd provider_lock{};
};

} // namespace coffer::vmm
