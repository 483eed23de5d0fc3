// What all verbs share. A verb's register function adds its subcommand and options to the parser, and sets
// Context::action from the subcommand's callback; main() runs the action after parsing.
#pragma once

#include <functional>
#include <string>

#include "base/result.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/home/home_session.hpp"

namespace CLI {
class App;
}

namespace coffer::cli {

struct Context {
    std::string home_root; // --home-root; empty: from the environment

    // What was asked for: its result is the process's exit code.
    std::function<Result<int>()> action;

    Result<vmm::HomeRoot> root() const { return vmm::HomeRoot::resolve(home_root); }
    Result<vmm::HomeLocation> location(std::string name) const {
        TRY(vmm::check_vm_name(name));
        return vmm::HomeLocation{TRY(root()), std::move(name)};
    }
    // The keeper's options as --passphrase-fd has them.
    static vmm::KeeperOptions keeper_options(int passphrase_fd) {
        vmm::KeeperOptions options;
        options.passphrase_fd = passphrase_fd;
        return options;
    }
};

// Adds `--passphrase-fd N` to a verb.
void add_passphrase_option(CLI::App& verb, int& passphrase_fd);

// InvalidArgument, with the verbs to use, where the VM is a template.
Result<void> refuse_template(vmm::VmConfig const& config);

// On standard output.
void print_line(std::string_view line);

// One cmd_*.cpp each. The arguments outlive parsing and the action.
void register_provider(CLI::App& app, Context& context);
void register_create(CLI::App& app, Context& context);
void register_list(CLI::App& app, Context& context);
void register_show(CLI::App& app, Context& context);
void register_stop(CLI::App& app, Context& context);
void register_suspend(CLI::App& app, Context& context);
void register_resume(CLI::App& app, Context& context);
void register_snapshot(CLI::App& app, Context& context);
void register_remove(CLI::App& app, Context& context);
void register_run(CLI::App& app, Context& context);
void register_rekey(CLI::App& app, Context& context);
void register_unlock(CLI::App& app, Context& context);
void register_disk(CLI::App& app, Context& context);
void register_tpm(CLI::App& app, Context& context);
void register_backup(CLI::App& app, Context& context);
void register_restore(CLI::App& app, Context& context);
void register_clone(CLI::App& app, Context& context);
void register_move(CLI::App& app, Context& context);
void register_config(CLI::App& app, Context& context);
void register_host(CLI::App& app, Context& context);
void register_migrate(CLI::App& app, Context& context);
void register_receive(CLI::App& app, Context& context);
void register_template(CLI::App& app, Context& context);

} // namespace coffer::cli
