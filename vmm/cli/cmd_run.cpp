// coffer run NAME
#include <CLI/CLI.hpp>
#include <fmt/ranges.h>
#include <unistd.h>

#include "base/log.hpp"
#include "vmm/cli/backup_reminder.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/machine/host_memory.hpp"
#include "vmm/machine/run_vm.hpp"

namespace coffer::cli {

namespace {

struct RunArguments {
    std::string name;
    std::string accelerator = "auto";
    std::string kernel;
    std::string initrd;
    std::string cmdline;
    std::string command;
    double timeout = 0;
    std::string serial;
    bool verbose = false;
    bool lock_memory = false;
    bool accept_rollback = false;
    int passphrase_fd = -1;
    vmm::SavedRun::Options saved;
};

Result<vmm::RunOptions> run_options(RunArguments const& arguments) {
    vmm::RunOptions options;
    if (arguments.accelerator == "kvm")
        options.accelerator = vmm::AcceleratorPreference::Kvm;
    else if (arguments.accelerator == "soft")
        options.accelerator = vmm::AcceleratorPreference::Soft;
    if (!arguments.kernel.empty())
        options.kernel = TRY(vmm::DirectKernel::load(arguments.kernel, arguments.initrd, arguments.cmdline));
    else if (!arguments.initrd.empty() || !arguments.cmdline.empty())
        return make_error(ErrorCode::InvalidArgument, "--initrd and --cmdline need --kernel");
    if (!arguments.command.empty()) options.command = arguments.command;
    if (arguments.timeout > 0)
        options.timeout = static_cast<Nanoseconds>(arguments.timeout * static_cast<double>(k_ns_per_s));
    if (!arguments.serial.empty()) options.serial = arguments.serial;
    if (options.command && options.serial && *options.serial == "-")
        return make_error(ErrorCode::InvalidArgument,
                          "--exec and --serial - both want standard output; give --serial a file");
    options.verbose = arguments.verbose;
    options.saved = arguments.saved;
    // Locked memory is all there from the start, so that no page can be waited for.
    options.saved.eager = options.saved.eager || arguments.lock_memory;
    return options;
}

int exit_code(vmm::RunOutcome const& outcome, std::string_view name) {
    constexpr int k_killed_by_signal = 128;
    switch (outcome.end) {
    case vmm::RunEnd::PowerOff: return to_int(ExitCode::Ok);
    case vmm::RunEnd::Quit: return to_int(ExitCode::Ok);
    case vmm::RunEnd::TimedOut:
        log::error("{} was still running at its --timeout", name);
        return to_int(ExitCode::Timeout);
    case vmm::RunEnd::Interrupted: return k_killed_by_signal + outcome.code;
    case vmm::RunEnd::CommandEnded: return outcome.code;
    case vmm::RunEnd::Moved:
        log::info("VM '{}' runs on another host", name);
        return to_int(outcome.code == 0 ? ExitCode::Ok : ExitCode::Busy);
    case vmm::RunEnd::Suspended:
        log::info("VM '{}' is suspended; 'coffer resume {}' goes on", name, name);
        return to_int(outcome.code == 0 ? ExitCode::Ok : ExitCode::Busy);
    }
    return to_int(ExitCode::Internal);
}

// Said on standard error whatever else is printed there: the guest gets a TPM of another time.
Result<void> report_accepted_rollback(vmm::HomeSession const& home, std::string const& name) {
    auto const events = TRY(home.history());
    log::warning(
        "{}: {}. Its TPM and UEFI state are those of the old copy: what the guest sealed or counted since then "
        "is gone, and the newer copy no longer runs on this host",
        name, events.empty() ? "an old copy of the home was accepted" : events.back().text);
    return {};
}

// Before the VM's state is read and the guest's memory made.
Result<void> protect_memory(vmm::HomeSession const& home, bool lock) {
    if (lock) return vmm::lock_memory(home.config().memory);
    auto swaps = vmm::unprotected_swaps();
    if (!swaps)
        log::warning("cannot tell whether this host's swap is encrypted: {}", swaps.error().message());
    else if (!swaps->empty())
        log::warning("this host swaps to {}, which is not known to be encrypted: what is in the guest's memory can get "
                     "there; --lock-memory keeps it out",
                     fmt::join(*swaps, ", "));
    return {};
}

Result<int> run(Context const& context, RunArguments const& arguments) {
    if (arguments.verbose) log::set_level(log::Level::Info);
    auto options = TRY(run_options(arguments));
    auto location = TRY(context.location(arguments.name));
    remind_of_backup(location);
    auto home =
        TRY(vmm::unlock_home(location, Context::keeper_options(arguments.passphrase_fd), vmm::HomeAccess::Writer,
                             arguments.accept_rollback ? vmm::RollbackPolicy::Accept : vmm::RollbackPolicy::Refuse));
    if (arguments.accept_rollback) TRY(report_accepted_rollback(*home, arguments.name));
    TRY(refuse_template(home->config()));
    if (home->first_seen())
        log::warning("this host sees the home of {} for the first time, and cannot tell whether it is an old copy",
                     arguments.name);
    TRY(protect_memory(*home, arguments.lock_memory));
    return exit_code(TRY(vmm::run_vm(*home, std::move(options))), arguments.name);
}

} // namespace

namespace {

// What run and resume share.
void add_common_options(CLI::App& verb, RunArguments& arguments) {
    verb.add_option("NAME", arguments.name, "The VM")->required();
    verb.add_option("--accel", arguments.accelerator, "CPU backend; auto measures whether KVM runs ring 0 natively")
        ->check(CLI::IsMember({"auto", "kvm", "soft"}))
        ->capture_default_str();
    verb.add_option("--kernel", arguments.kernel, "A Linux kernel (bzImage) that the firmware starts and measures");
    verb.add_option("--initrd", arguments.initrd, "Its initial RAM disk");
    verb.add_option("--cmdline", arguments.cmdline, "Its command line");
    verb.add_option("--timeout", arguments.timeout, "Stop the VM after so many SECONDS, with exit code 124")
        ->check(CLI::PositiveNumber);
    verb.add_option("--serial", arguments.serial, "Write the serial console to FILE, or to standard output for -");
    verb.add_flag("--verbose", arguments.verbose, "Say which backend runs and why, and print counters at the end");
    verb.add_flag("--eager", arguments.saved.eager,
                  "Of a suspended VM, load and check all memory before the guest goes on, rather than while it runs");
    verb.add_flag("--lock-memory", arguments.lock_memory,
                  "Keep the guest's memory and all else of this process from being swapped out");
    add_passphrase_option(verb, arguments.passphrase_fd);
    verb.footer("The terminal is the guest's serial console: Ctrl-A x ends the VM, Ctrl-A h helps.");
}

void set_action(CLI::App& verb, Context& context, std::shared_ptr<RunArguments> const& arguments) {
    verb.callback(
        [&context, arguments] { context.action = [&context, arguments] { return run(context, *arguments); }; });
}

} // namespace

void register_run(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("run", "Run a VM until it powers off; one that is suspended goes on");
    auto arguments = std::make_shared<RunArguments>();
    add_common_options(*verb, *arguments);
    verb->add_option("--exec", arguments->command,
                     "Have the guest's agent run COMMAND, with its output on standard output, then power off; the exit "
                     "code is the command's");
    verb->add_flag(
        "--accept-rollback", arguments->accept_rollback,
        "Run a home that was put back from an old copy, which is refused otherwise: the old copy becomes the "
        "newest, and the home's history says so");
    verb->add_flag_callback(
        "--discard-suspended", [arguments] { arguments->saved.policy = vmm::SuspendedPolicy::Discard; },
        "Drop the suspended machine, and power the VM on");
    set_action(*verb, context, arguments);
}

void register_resume(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("resume", "Go on with a suspended VM, until it powers off");
    auto arguments = std::make_shared<RunArguments>();
    arguments->saved.policy = vmm::SuspendedPolicy::Require;
    add_common_options(*verb, *arguments);
    set_action(*verb, context, arguments);
}

} // namespace coffer::cli
