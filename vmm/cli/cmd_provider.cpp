// coffer provider list; the rest of it is in files of its own
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "vmm/cli/cmd_provider.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

std::string backup_mark(ProviderInfo const& info) {
    std::string text;
    if (info.lacks_backup())
        text += info.backed_up_version == 0 ? "  never backed up" : "  not backed up since it was rotated";
    if (info.require_backup) text += "  (new VMs need a backup)";
    return text;
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
        for (size_t i = 0; i < providers.size(); ++i) add_native_json(array[i], providers[i]);
        print_line(dump(array));
        return to_int(ExitCode::Ok);
    }
    for (auto const& info : providers)
        print_line(fmt::format("{}  {:<6}  {:<13}  {}{}{}", info.id.to_string(), to_string(info.kind),
                               info.kind == ProviderKind::Kmip ? "key server"
                               : info.needs_passphrase         ? "passphrase"
                               : !info.host_tpm.empty()        ? "host TPM"
                                                               : "no passphrase",
                               info.name, chosen == info.id ? " (default)" : "", backup_mark(info)));
    return to_int(ExitCode::Ok);
}

} // namespace

void add_native_json(nlohmann::json& json, ProviderInfo const& info) {
    if (info.kind != ProviderKind::Native) return;
    json["key_version"] = info.kdk_version;
    json["backed_up_version"] = info.backed_up_version;
    if (info.backed_up_version != 0) json["backed_up"] = info.backed_up;
    json["require_backup"] = info.require_backup;
    if (!info.host_tpm.empty()) json["host_tpm"] = info.host_tpm;
}

void register_provider(CLI::App& app, Context& context) {
    auto* provider = app.add_subcommand("provider", "Key providers: where the keys of VMs come from");
    provider->require_subcommand(1);

    auto* add = provider->add_subcommand("add", "Add a key provider");
    add->require_subcommand(1);
    register_provider_add_native(*add, context);
    register_provider_kmip(*add, context);
    register_provider_native(*provider, context);
    register_provider_manage(*provider, context);

    auto* list_verb = provider->add_subcommand("list", "List key providers");
    auto json = std::make_shared<bool>(false);
    list_verb->add_flag("--json", *json, "Print JSON");
    list_verb->callback([&context, json] { context.action = [&context, json] { return list(context, *json); }; });
}

} // namespace coffer::cli
