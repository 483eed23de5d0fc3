// Under what a home is encrypted: its bundle key, and that key as a provider wrapped it.
#pragma once

#include "crypto/keys.hpp"
#include "keyprovider/key_provider.hpp"

namespace coffer::vmm {

struct HomeSeal {
    Uuid provider;
    KeyId key_id;
    WrappedKey wrapped;
    crypto::BundleKey key;
};

} // namespace coffer::vmm
