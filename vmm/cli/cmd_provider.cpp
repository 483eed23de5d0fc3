// coffer provider add native NAME, coffer provider list; the rest of it is in files of its own
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "crypto/mac.hpp"
#include "vmm/cli/cmd_provider.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/passphrase.hpp"

namespace coffer::cli {

namespace {

struct AddOptions {
    std::string name;
    int passphrase_fd = -1;
    bool ask = false;
};

Result<crypto::SecretBytes> ask_twice() {
    auto first = TRY(vmm::ask_passphrase("New passphrase"));
    auto second = TRY(vmm::ask_passphrase("The same passphrase again"));
    if (!crypto::equal_in_constant_time(first.expose(), second.expose()))
        return make_error(ErrorCode::InvalidArgument, "the two passphrases differ");
    return first;
}

Result<int> add_native(Context const& context, AddOptions const& options) {
    auto root = TRY(context.root());
    ProviderRegistry registry(root.providers());
    std::optional<crypto::SecretBytes> passphrase;
    if (options.passphrase_fd >= 0)
        passphrase = TRY(vmm::read_passphrase(options.passphrase_fd));
    else if (options.ask)
        passphrase = TRY(ask_twice());
    auto info = TRY(registry.add_native(options.name, passphrase ? &*passphrase : nullptr));
    print_line(fmt::format("added native key provider '{}' ({})", info.name, info.id.to_string()));
    if (info.keys_on_disk()) print_line(unprotected_provider_warning(info.name));
    return to_int(ExitCode::Ok);
}

Result<int> list(Context const& context, bool json) {
    auto root = TRY(context.root());
    ProviderRegistry const registry(root.providers());
    auto providers = TRY(registry.list());
    auto chosen = TRY(registry.default_provider());
    if (json) {
        auto array = nlohmann::json::array();
        for (auto const& info : providers)
            array.push_back({{"name", info.name},
                             {"id", info.id.to_string()},
                             {"kind", to_string(info.kind)},
                             {"passphrase", info.needs_passphrase},
                             {"created", info.created},
                             {"default", chosen == info.id}});
        print_line(dump(array));
        return to_int(ExitCode::Ok);
    }
    for (auto const& info : providers)
        print_line(fmt::format("{}  {:<6}  {:<13}  {}{}", info.id.to_string(), to_string(info.kind),
                               info.kind == ProviderKind::Kmip ? "key server"
                               : info.needs_passphrase         ? "passphrase"
                                                               : "no passphrase",
                               info.name, chosen == info.id ? " (default)" : ""));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_provider(CLI::App& app, Context& context) {
    auto* provider = app.add_subcommand("provider", "Key providers: where the keys of VMs come from");
    provider->require_subcommand(1);

    auto* add = provider->add_subcommand("add", "Add a key provider");
    add->require_subcommand(1);
    auto* native = add->add_subcommand("native", "A key kept on this host, under a passphrase if you give one");
    auto options = std::make_shared<AddOptions>();
    native->add_option("NAME", options->name, "What to call it (any text)")->required();
    add_passphrase_option(*native, options->passphrase_fd);
    native->add_flag("--ask-passphrase", options->ask, "Ask for a passphrase on the terminal")
        ->excludes("--passphrase-fd");
    native->callback(
        [&context, options] { context.action = [&context, options] { return add_native(context, *options); }; });

    register_provider_kmip(*add, context);
    register_provider_manage(*provider, context);

    auto* list_verb = provider->add_subcommand("list", "List key providers");
    auto json = std::make_shared<bool>(false);
    list_verb->add_flag("--json", *json, "Print JSON");
    list_verb->callback([&context, json] { context.action = [&context, json] { return list(context, *json); }; });
}

} // namespace coffer::cli
