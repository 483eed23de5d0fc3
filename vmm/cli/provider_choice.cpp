#include "vmm/cli/provider_choice.hpp"

namespace coffer::cli {

Result<ProviderInfo> choose_provider(ProviderRegistry const& registry, std::string const& named) {
    if (!named.empty()) return registry.find(named);
    if (auto chosen = TRY(registry.default_provider())) return registry.find(*chosen);
    auto providers = TRY(registry.list());
    if (providers.size() == 1) return std::move(providers.front());
    if (providers.empty())
        return make_error(ErrorCode::InvalidArgument,
                          "a VM with a TPM, or with an encrypted home, needs a key provider, and there is none: run "
                          "'coffer provider add native NAME' first. A VM without TPM ('coffer create --tpm none') can "
                          "have an unencrypted home");
    std::string names;
    for (auto const& info : providers) names += fmt::format("{}'{}'", names.empty() ? "" : ", ", info.name);
    return make_error(ErrorCode::InvalidArgument,
                      "there are several key providers: say with --provider which of {}, or choose one with 'coffer "
                      "provider default'",
                      names);
}

} // namespace coffer::cli
