// Opening a home with a bundle key that someone else comes by: what unlock_home() is made of.
#pragma once

#include <functional>
#include <memory>

#include "vmm/home/home_session.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm {

// Unwraps the key that the header names. Called once for an encrypted home, never for another.
using BundleOpener = std::function<Result<crypto::BundleKey>(BundleHeader const&)>;

Result<std::unique_ptr<HomeSession>> open_home(HomeLocation const& location, HomeAccess access,
                                               BundleOpener const& open_key,
                                               RollbackPolicy rollback = RollbackPolicy::Refuse);

// To write, of the home that came by this migration and is not this host's yet: the session reads alone until claim().
Result<std::unique_ptr<HomeSession>> open_arriving(HomeLocation const& location, Uuid const& migration,
                                                   BundleOpener const& open_key);

} // namespace coffer::vmm
