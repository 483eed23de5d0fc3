// coffer provider show|test|default|remove NAME
#include <iostream>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "vmm/cli/cmd_provider.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/provider_users.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::cli {

namespace {

struct Options {
    std::string name;
    int passphrase_fd = -1;
    bool json = false;
    bool yes = false;
};

std::string pin_text(ByteVector const& pin) {
    std::string text;
    for (std::byte b : pin) text += fmt::format("{:02x}", static_cast<unsigned>(b));
    return text;
}

nlohmann::json kmip_json(kmip::KmipConfig const& config) {
    nlohmann::json json = {{"endpoints", config.endpoints}, {"wrap_at_server", config.wrap_at_server}};
    if (config.major != 0) json["version"] = fmt::format("{}.{}", config.major, config.minor);
    if (!config.pin.empty()) json["pin"] = pin_text(config.pin);
    return json;
}

std::string backup_text(ProviderInfo const& info) {
    if (info.backed_up_version == 0) return "never";
    return fmt::format("{}{}", format_time(info.backed_up), info.lacks_backup() ? ", not since it was rotated" : "");
}

Result<int> show(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    ProviderRegistry registry(root.providers());
    auto info = TRY(registry.find(options.name));
    auto users = TRY(users_of_provider(root, info.id));
    std::vector<std::string> vms;
    for (auto const& user : users.known) vms.push_back(user.vm);
    bool const is_default = TRY(registry.default_provider()) == info.id;
    std::optional<kmip::KmipConfig> kmip;
    if (info.kind == ProviderKind::Kmip) kmip = TRY(registry.kmip_config(info.id));
    if (options.json) {
        nlohmann::json json = {{"name", info.name},
                               {"id", info.id.to_string()},
                               {"kind", to_string(info.kind)},
                               {"passphrase", info.needs_passphrase},
                               {"created", info.created},
                               {"default", is_default},
                               {"vms", vms},
                               {"authority", users.authority_key.has_value()}};
        add_native_json(json, info);
        if (kmip) json["kmip"] = kmip_json(*kmip);
        print_line(dump(json));
        return to_int(ExitCode::Ok);
    }
    auto row = [](std::string_view what, std::string_view value) { print_line(fmt::format("{:<12} {}", what, value)); };
    row("name", info.name);
    row("id", info.id.to_string());
    row("kind", to_string(info.kind));
    row("created", format_time(info.created));
    row("default", is_default ? "yes" : "no");
    if (kmip) {
        for (auto const& endpoint : kmip->endpoints) row("endpoint", endpoint);
        row("version", kmip->major != 0 ? fmt::format("{}.{}", kmip->major, kmip->minor) : "negotiated");
        row("wrapping", kmip->wrap_at_server ? "at the server" : "on this host, with a key that is fetched");
        if (!kmip->pin.empty()) row("pin", pin_text(kmip->pin));
    } else {
        row("passphrase", info.needs_passphrase ? "yes" : "no");
        row("host TPM", info.host_tpm.empty() ? "not required" : info.host_tpm);
        row("key", fmt::format("version {}", info.kdk_version));
        row("backup", backup_text(info));
        row("new VMs", info.require_backup ? "only with a backup" : "with a backup or without");
    }
    row("VMs", vms.empty() ? "none" : join(vms));
    if (users.authority_key) row("authority", "of this host, for TPMs");
    if (info.keys_on_disk()) print_line(unprotected_provider_warning(info.name));
    if (info.lacks_backup()) print_line("note: " + missing_backup_warning(info));
    return to_int(ExitCode::Ok);
}

Result<int> test(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    auto info = TRY(ProviderRegistry(root.providers()).find(options.name));
    auto keeper = TRY(vmm::KeeperProcess::start(root, Context::keeper_options(options.passphrase_fd)));
    auto steps = TRY(keeper.test(info.id));
    bool ok = true;
    auto array = nlohmann::json::array();
    for (auto const& step : steps) {
        ok = ok && !step.failed;
        double const milliseconds = static_cast<double>(step.time) / static_cast<double>(k_ns_per_ms);
        if (options.json)
            array.push_back(
                {{"step", step.name}, {"ok", !step.failed}, {"milliseconds", milliseconds}, {"text", step.text}});
        else
            print_line(fmt::format("{:<6} {:<20} {:>9.1f} ms  {}", step.failed ? "failed" : "ok", step.name,
                                   milliseconds, step.text));
    }
    if (options.json) print_line(dump(array));
    if (!ok) return make_error(ErrorCode::KeyUnavailable, "key provider '{}' does not work", info.name);
    return to_int(ExitCode::Ok);
}

Result<int> set_default(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    ProviderRegistry registry(root.providers());
    auto info = TRY(registry.find(options.name));
    TRY(registry.set_default(info.id));
    print_line(fmt::format("new VMs get key provider '{}' unless --provider names another", info.name));
    return to_int(ExitCode::Ok);
}

Result<void> confirm(ProviderInfo const& info) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(ErrorCode::InvalidArgument,
                          "removing key provider '{}' cannot be undone: give --yes if that is wanted", info.name);
    print_line(fmt::format("{}\nType the provider's name to go on:",
                           info.kind == ProviderKind::Native
                               ? fmt::format("This destroys the keys of '{}' for good: no copy of a home under it, on "
                                             "this host or elsewhere, opens again.",
                                             info.name)
                               : fmt::format("This destroys what this host knows of '{}', its client key too. Keys at "
                                             "the server stay there.",
                                             info.name)));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != info.name) return make_error(ErrorCode::Cancelled, "'{}' was not removed", info.name);
    return {};
}

Result<void> check_unused(vmm::HomeRoot const& root, ProviderInfo const& info) {
    auto users = TRY(users_of_provider(root, info.id));
    if (!users.known.empty())
        return make_error(ErrorCode::Busy, "key provider '{}' is used by VMs: {}", info.name, names_of(users.known));
    if (users.authority_key)
        return make_error(ErrorCode::Busy,
                          "key provider '{}' protects this host's certificate authority: 'coffer ca protect' puts that "
                          "under another one",
                          info.name);
    if (!users.unreadable.empty())
        return make_error(ErrorCode::Busy,
                          "key provider '{}' may be used by VMs whose homes cannot be read: {}; repair or remove them "
                          "first",
                          info.name, join(users.unreadable));
    return {};
}

Result<int> remove(Context const& context, Options const& options) {
    auto root = TRY(context.root());
    ProviderRegistry registry(root.providers());
    auto info = TRY(registry.find(options.name));
    if (!options.yes) {
        TRY(check_unused(root, info));
        TRY(confirm(info));
    }
    // While the user thought, a VM may have come.
    auto lock = TRY(registry.lock(info.id, ProviderUse::Exclusive));
    TRY(check_unused(root, info));
    TRY(registry.remove(info.id));
    print_line(fmt::format("removed key provider '{}'", info.name));
    return to_int(ExitCode::Ok);
}

using Run = Result<int> (*)(Context const&, Options const&);

CLI::App& add_verb(CLI::App& provider, Context& context, std::shared_ptr<Options> const& options,
                   std::string const& name, std::string const& help, Run run) {
    auto* verb = provider.add_subcommand(name, help);
    verb->add_option("NAME", options->name, "The key provider")->required();
    verb->callback(
        [&context, options, run] { context.action = [&context, options, run] { return run(context, *options); }; });
    return *verb;
}

} // namespace

void register_provider_manage(CLI::App& provider, Context& context) {
    auto options = std::make_shared<Options>();
    auto& show_verb = add_verb(provider, context, options, "show", "Show a key provider and the VMs that use it", show);
    show_verb.add_flag("--json", options->json, "Print JSON");
    auto& test_verb = add_verb(provider, context, options, "test",
                               "Make, use and destroy a throw-away key, and say how long each step takes", test);
    test_verb.add_flag("--json", options->json, "Print JSON");
    add_passphrase_option(test_verb, options->passphrase_fd);
    add_verb(provider, context, options, "default", "Give new VMs this provider where none is named", set_default);
    auto& remove_verb = add_verb(provider, context, options, "remove", "Remove a key provider that no VM uses", remove);
    remove_verb.add_flag("--yes", options->yes, "Do not ask");
}

} // namespace coffer::cli
