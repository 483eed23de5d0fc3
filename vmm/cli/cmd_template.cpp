// coffer template NAME
#include <CLI/CLI.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/suspended.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

struct TemplateOptions {
    std::string name;
    bool undo = false;
    int passphrase_fd = -1;
};

Result<int> mark(Context const& context, TemplateOptions const& options) {
    auto location = TRY(context.location(options.name));
    auto home = TRY(vmm::unlock_home(location, Context::keeper_options(options.passphrase_fd)));
    auto config = home->config();
    bool const wanted = !options.undo;
    if (wanted) TRY(refuse_suspended(*home, "it becomes a template"));
    if (config.is_template != wanted) {
        config.is_template = wanted;
        TRY(home->commit(vmm::HomeFile::Config, vmm::encode_vm_config(config)));
    }
    print_line(wanted ? fmt::format("'{}' is a template: 'coffer create NAME --from {}' makes VMs of it", options.name,
                                    options.name)
                      : fmt::format("'{}' is a VM to be run, and no template", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

Result<void> refuse_template(vmm::VmConfig const& config) {
    if (!config.is_template) return {};
    return make_error(ErrorCode::InvalidArgument,
                      "'{}' is a template and is not run: make a VM of it with 'coffer create NAME --from {}', or end "
                      "its being one with 'coffer template {} --undo'",
                      config.name, config.name, config.name);
}

void register_template(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("template", "Mark a VM as a template, which is not run: VMs are made of it by "
                                                "'coffer create --from'");
    auto options = std::make_shared<TemplateOptions>();
    verb->add_option("NAME", options->name, "The VM, which is off")->required();
    verb->add_flag("--undo", options->undo, "Make it a VM to be run again");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return mark(context, *options); }; });
}

} // namespace coffer::cli
