// coffer tpm clear NAME
#include <iostream>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "devices/tpm/tpm_client.hpp"
#include "vmm/cli/cmd_tpm.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/tpm_access.hpp"

namespace coffer::cli {

namespace {

struct ClearOptions {
    std::string name;
    bool yes = false;
    int passphrase_fd = -1;
};

Result<void> confirm(std::string const& name) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(ErrorCode::InvalidArgument,
                          "clearing the TPM of '{}' destroys its owner's keys for good: give --yes if that is wanted",
                          name);
    print_line(fmt::format("This destroys the storage keys in the TPM of '{}' for good. What is sealed to them "
                           "(BitLocker, LUKS, keys) can no longer be opened.\nType the VM's name to go on:",
                           name));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != name) return make_error(ErrorCode::Cancelled, "the TPM of '{}' was not cleared", name);
    return {};
}

Result<int> clear(Context const& context, ClearOptions const& options) {
    auto access = TRY(TpmAccess::open(context, options.name, options.passphrase_fd, TpmChanges::Keep));
    if (!options.yes) TRY(confirm(options.name));
    devices::TpmClient client(access->tpm());
    TRY(client.startup());
    TRY(client.clear());
    TRY(client.shutdown());
    TRY(access->tpm().make_durable());
    print_line(fmt::format("cleared the TPM of '{}'", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_tpm_clear(CLI::App& tpm, Context& context) {
    auto* verb = tpm.add_subcommand("clear", "Take the TPM from its owner: destroys the owner's keys, NV indices, "
                                             "passwords and lockout state, as TPM2_Clear does");
    auto options = std::make_shared<ClearOptions>();
    verb->add_option("NAME", options->name, "The VM, which is off")->required();
    verb->add_flag("--yes", options->yes, "Do not ask");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return clear(context, *options); }; });
}

} // namespace coffer::cli
