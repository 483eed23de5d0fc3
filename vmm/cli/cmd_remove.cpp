// coffer remove NAME
#include <iostream>

#include <CLI/CLI.hpp>
#include <unistd.h>

#include "base/log.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/host_record.hpp"
#include "vmm/home/migration_journal.hpp"
#include "vmm/home/overlay_files.hpp"

namespace coffer::cli {

namespace {

struct RemoveOptions {
    std::string name;
    bool yes = false;
    bool discard_layers = false;
};

Result<void> confirm(std::string const& name) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(
            ErrorCode::InvalidArgument,
            "removing '{}' destroys its TPM and UEFI state and encrypted disks for good: give --yes if that is wanted",
            name);
    print_line(fmt::format("This destroys the TPM and UEFI state of '{}' and its encrypted disks for good; other disk "
                           "images stay. What is sealed to its TPM "
                           "(BitLocker, LUKS, keys) can no longer be opened by it.\nType the VM's name to go on:",
                           name));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != name) return make_error(ErrorCode::Cancelled, "'{}' was not removed", name);
    return {};
}

Result<int> remove(Context const& context, RemoveOptions const& options) {
    auto location = TRY(context.location(options.name));
    // Said before anything is asked.
    auto user = vmm::home_user(location);
    if (!std::filesystem::exists(location.folder()))
        return vmm::no_such_home(location);
    if (user && user->has_value())
        return make_error(ErrorCode::Busy, "VM '{}' is running (process {}): power it off first", options.name, **user);
    auto const record = vmm::read_host_record(location.host_record());
    bool const moved = record && *record && (*record)->standing == vmm::Standing::HandedOver;
    if (moved) {
        auto const entry = TRY(vmm::MigrationJournal(location.root).read_outgoing((*record)->migration));
        if (!entry || entry->state != vmm::OutgoingState::Settled)
            log::warning("{}. If the other host does not have it, this is the only copy",
                         vmm::handed_over(location, (*record)->migration).message());
    }
    // The home may not even open.
    if (!moved && !options.discard_layers && vmm::has_overlay_files(location))
        return make_error(
            ErrorCode::InvalidArgument,
            "'{}' has snapshots, and what was written to its disks since the first is in its home: delete "
            "them first ('coffer snapshot delete'), which puts it into the disks, or give "
            "--discard-layers to leave disk images as they were then",
            options.name);
    if (!options.yes) TRY(confirm(options.name));
    TRY(vmm::remove_home(location));
    print_line(fmt::format("removed VM '{}'", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_remove(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand(
        "remove", "Remove a VM with its TPM and UEFI state and encrypted disks; other disk images stay");
    auto options = std::make_shared<RemoveOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    verb->add_flag("--yes", options->yes, "Do not ask");
    verb->add_flag("--discard-layers", options->discard_layers,
                   "Of a VM with snapshots: give up what was written to its disks since the first");
    verb->callback([&context, options] { context.action = [&context, options] { return remove(context, *options); }; });
}

} // namespace coffer::cli
