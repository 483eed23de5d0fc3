// coffer tpm: the verbs are in files of their own.
#include <CLI/CLI.hpp>

#include "vmm/cli/cmd_tpm.hpp"

namespace coffer::cli {

void register_tpm(CLI::App& app, Context& context) {
    auto* tpm = app.add_subcommand("tpm", "A VM's TPM");
    tpm->require_subcommand(1);
    register_tpm_show(*tpm, context);
    register_tpm_pcrs(*tpm, context);
    register_tpm_cert(*tpm, context);
    register_tpm_eventlog(*tpm, context);
    register_tpm_clear(*tpm, context);
    register_tpm_add(*tpm, context);
    register_tpm_remove(*tpm, context);
    register_tpm_serve(*tpm, context);
}

} // namespace coffer::cli
