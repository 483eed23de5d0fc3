// coffer list
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "vmm/cli/backup_reminder.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/vm_status.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

Result<int> list(Context const& context, bool json) {
    auto root = TRY(context.root());
    auto options = Context::keeper_options(-1);
    options.may_prompt = false; // a list asks nothing; `show` does
    VmInspector inspector(root, options);
    auto array = nlohmann::json::array();
    for (auto const& name : TRY(vmm::list_homes(root))) {
        auto status = inspector.inspect(name);
        if (!status && status.error().code() == ErrorCode::NotFound) continue; // removed meanwhile
        if (!status) return std::move(status).error();
        if (json) {
            array.push_back(to_json(*status));
            continue;
        }
        std::string_view const protection = !status->summary              ? "damaged"
                                            : !status->summary->encrypted ? "unencrypted"
                                                                          : "encrypted";
        bool const is_template = status->config && status->config->is_template;
        print_line(fmt::format("{:<24}  {:<11}  {}{}{}{}", name, to_string(status->state), protection,
                               is_template ? "  template" : "", status->reason.empty() ? "" : "  ", status->reason));
    }
    if (json) print_line(dump(array));
    remind_of_backups(root);
    return to_int(ExitCode::Ok);
}

} // namespace

void register_list(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("list", "List VMs and their state: off, running or locked");
    auto json = std::make_shared<bool>(false);
    verb->add_flag("--json", *json, "Print JSON");
    verb->callback([&context, json] { context.action = [&context, json] { return list(context, *json); }; });
}

} // namespace coffer::cli
