// Opens homes and makes seals for new ones by one keeper, which is started when first needed: a provider's passphrase
// is asked for once.
#pragma once

#include <optional>

#include "vmm/home/home_open.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::cli {

class HomeOpener {
public:
    HomeOpener(vmm::HomeRoot root, vmm::KeeperOptions options)
        : m_root(std::move(root)), m_options(std::move(options)) {}

    // As vmm::unlock_home(), of a home below the root.
    Result<std::unique_ptr<vmm::HomeSession>> open(vmm::HomeLocation const& location, vmm::HomeAccess access);
    Result<crypto::BundleKey> unwrap(vmm::BundleHeader const& header);
    // As KeeperProcess::make_proven_seal().
    Result<vmm::HomeSeal> make_seal(Uuid const& provider, std::string const& label);
    // The keeper itself, which lives as long as this object.
    Result<vmm::KeeperProcess*> keeper();

private:
    vmm::HomeRoot m_root;
    vmm::KeeperOptions m_options;
    std::optional<vmm::KeeperProcess> m_keeper;
};

} // namespace coffer::cli
