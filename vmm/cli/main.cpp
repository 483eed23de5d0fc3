// The coffer program.
#include <csignal>
#include <cstring>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "base/log.hpp"
#include "crypto/secret.hpp"
#include "vmm/cli/cmd_ca.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/home/keeper_arguments.hpp"
#include "vmm/home/process_hygiene.hpp"

namespace coffer::cli {
namespace {

int fail(Error const& error) {
    log::error("{}", error.message());
    return to_int(exit_code_for(error.code()));
}

int run(int argc, char** argv) {
    if (auto hygiene = vmm::forbid_dumps(); !hygiene) return fail(hygiene.error());
    if (auto memory = crypto::init_secret_memory(); !memory) return fail(memory.error());
    // Writes to a closed pipe are errors of the write, not the end of the process.
    std::signal(SIGPIPE, SIG_IGN);

    CLI::App app("Coffer runs virtual machines whose TPM is safe at rest.", "coffer");
    app.set_version_flag("--version", std::string("coffer " COFFER_VERSION));
    app.require_subcommand(1);
    app.fallthrough(); // --home-root may stand behind the verb
    Context context;
    app.add_option("--home-root", context.home_root,
                   "Where VMs and key providers are kept [$COFFER_HOME, or coffer in $XDG_DATA_HOME]")
        ->type_name("DIR");
    register_provider(app, context);
    register_ca(app, context);
    register_create(app, context);
    register_list(app, context);
    register_run(app, context);
    register_show(app, context);
    register_stop(app, context);
    register_suspend(app, context);
    register_resume(app, context);
    register_snapshot(app, context);
    register_remove(app, context);
    register_rekey(app, context);
    register_unlock(app, context);
    register_disk(app, context);
    register_tpm(app, context);
    register_clone(app, context);
    register_move(app, context);
    register_backup(app, context);
    register_restore(app, context);
    register_template(app, context);
    register_config(app, context);
    register_host(app, context);
    register_migrate(app, context);
    register_receive(app, context);
    try {
        app.parse(argc, argv);
    } catch (CLI::ParseError const& error) {
        // --help and --version come this way too, with code 0.
        return app.exit(error) == 0 ? to_int(ExitCode::Ok) : to_int(ExitCode::Usage);
    }
    COFFER_ASSERT(context.action);
    auto done = context.action();
    return done ? *done : fail(done.error());
}

} // namespace
} // namespace coffer::cli

int main(int argc, char** argv) {
    // The keeper leaves by _exit: nothing that runs at a common exit is wanted in its sandbox.
    if (argc > 1 && argv[1] == coffer::vmm::keeper::k_verb) ::_exit(coffer::vmm::keeper::keeper_main(argc, argv));
    return coffer::cli::run(argc, argv);
}
