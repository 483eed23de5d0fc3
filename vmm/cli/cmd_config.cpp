// coffer config set|get|unset|list
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/settings.hpp"

namespace coffer::cli {

namespace {

struct ConfigOptions {
    std::string key;
    std::string value;
    bool json = false;
};

Result<int> set(Context const& context, ConfigOptions const& options) {
    auto root = TRY(context.root());
    auto settings = TRY(vmm::Settings::load(root));
    TRY(settings.set(options.key, options.value));
    TRY(settings.save(root));
    return to_int(ExitCode::Ok);
}

Result<int> unset(Context const& context, ConfigOptions const& options) {
    auto root = TRY(context.root());
    auto settings = TRY(vmm::Settings::load(root));
    TRY(settings.unset(options.key));
    TRY(settings.save(root));
    return to_int(ExitCode::Ok);
}

Result<int> get(Context const& context, ConfigOptions const& options) {
    auto root = TRY(context.root());
    auto settings = TRY(vmm::Settings::load(root));
    print_line(TRY(settings.get(options.key)));
    return to_int(ExitCode::Ok);
}

Result<int> list(Context const& context, ConfigOptions const& options) {
    auto root = TRY(context.root());
    auto settings = TRY(vmm::Settings::load(root));
    auto array = nlohmann::json::array();
    for (auto const& spec : vmm::all_settings()) {
        auto value = TRY(settings.get(spec.key));
        bool const is_set = settings.is_set(spec.key);
        if (options.json)
            array.push_back({{"key", spec.key}, {"value", value}, {"default", spec.default_value}, {"set", is_set}});
        else
            print_line(fmt::format("{} = {}{}\n    {}", spec.key, value, is_set ? "" : " (default)", spec.help));
    }
    if (options.json) print_line(dump(array));
    return to_int(ExitCode::Ok);
}

using Run = Result<int> (*)(Context const&, ConfigOptions const&);

CLI::App& add_verb(CLI::App& config, Context& context, std::shared_ptr<ConfigOptions> const& options, std::string name,
                   std::string help, Run run) {
    auto* verb = config.add_subcommand(std::move(name), std::move(help));
    verb->callback(
        [&context, options, run] { context.action = [&context, options, run] { return run(context, *options); }; });
    return *verb;
}

} // namespace

void register_config(CLI::App& app, Context& context) {
    auto* config = app.add_subcommand("config", "What verbs do where they are not told otherwise");
    config->require_subcommand(1);
    auto options = std::make_shared<ConfigOptions>();
    auto& set_verb = add_verb(*config, context, options, "set", "Choose a setting's value", set);
    set_verb.add_option("KEY", options->key, "The setting")->required();
    set_verb.add_option("VALUE", options->value, "Its value")->required();
    auto& get_verb = add_verb(*config, context, options, "get", "Print a setting's value", get);
    get_verb.add_option("KEY", options->key, "The setting")->required();
    auto& unset_verb = add_verb(*config, context, options, "unset", "Give a setting its default again", unset);
    unset_verb.add_option("KEY", options->key, "The setting")->required();
    auto& list_verb = add_verb(*config, context, options, "list", "Print all settings", list);
    list_verb.add_flag("--json", options->json, "Print JSON");
}

} // namespace coffer::cli
