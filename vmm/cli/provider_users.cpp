#include "vmm/cli/provider_users.hpp"

#include "vmm/ca/authority_store.hpp"

namespace coffer::cli {

Result<ProviderUsers> users_of_provider(vmm::HomeRoot const& root, Uuid const& provider) {
    ProviderUsers users;
    for (auto const& name : TRY(vmm::list_homes(root))) {
        auto summary = vmm::summarize_home({root, name});
        if (!summary)
            users.unreadable.push_back(name);
        else if (summary->encrypted && summary->provider == provider)
            users.known.push_back({name, summary->key_id});
    }
    auto const authority = TRY(vmm::AuthorityStore(root).info());
    if (authority && authority->provider == provider) users.authority_key = authority->key_id;
    return users;
}

std::string join(std::vector<std::string> const& names) {
    std::string text;
    for (auto const& name : names) text += fmt::format("{}{}", text.empty() ? "" : ", ", name);
    return text;
}

std::string names_of(std::vector<ProviderUser> const& users) {
    std::vector<std::string> names;
    for (auto const& user : users) names.push_back(user.vm);
    return join(names);
}

} // namespace coffer::cli
