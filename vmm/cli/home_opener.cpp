#include "vmm/cli/home_opener.hpp"

namespace coffer::cli {

Result<vmm::KeeperProcess*> HomeOpener::keeper() {
    if (!m_keeper) m_keeper.emplace(TRY(vmm::KeeperProcess::start(m_root, m_options)));
    return &*m_keeper;
}

Result<crypto::BundleKey> HomeOpener::unwrap(vmm::BundleHeader const& header) {
    auto* asked = TRY(keeper());
    return asked->unwrap(header);
}

Result<vmm::HomeSeal> HomeOpener::make_seal(Uuid const& provider, std::string const& label) {
    auto* asked = TRY(keeper());
    return asked->make_proven_seal(provider, label);
}

Result<std::unique_ptr<vmm::HomeSession>> HomeOpener::open(vmm::HomeLocation const& location, vmm::HomeAccess access) {
    return vmm::open_home(location, access, [&](vmm::BundleHeader const& header) -> Result<crypto::BundleKey> {
        auto key = unwrap(header);
        if (key) return key;
        return std::move(key).error().with_context(
            fmt::format("cannot open {}", (location.folder() / vmm::home_spec::k_keys_file).native()));
    });
}

} // namespace coffer::cli
