// coffer move NAME --home-root DIR

#include <CLI/CLI.hpp>

#include "base/log.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/long_request.hpp"
#include "vmm/control/move.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_move.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::cli {

namespace {

struct MoveOptions {
    std::string name;
    std::string to;
};

Result<void> move_running(vmm::HomeLocation const& from, vmm::HomeRoot const& to) {
    auto const summary = TRY(vmm::summarize_home(from));
    TRY(vmm::check_provider(summary, to));
    auto client = TRY(vmm::control::Client::connect(from));
    watch_for_cancel();
    auto const answer = [&] {
        ProgressLine line(fmt::format("moving '{}'", from.name));
        return client.call(vmm::control::MoveRequest{to.root.native(), to.state.native(), summary.provider},
                           long_call(line));
    }();
    if (!answer && answer.error().code() == ErrorCode::Cancelled && is_cancelled())
        return make_error(ErrorCode::Cancelled, "the move was given up, and VM '{}' runs on in {}", from.name,
                          from.root.root.native());
    if (!answer) return answer.error();
    print_line(
        fmt::format("VM '{}' is in {} now, and runs on: it stood still for {:.1f} ms; {} rounds, {} MiB of disks "
                    "copied again",
                    from.name, to.root.native(), static_cast<double>(answer->stopped_us) / 1000, answer->rounds,
                    answer->bytes >> 20));
    if (!answer->left.empty())
        log::warning("what is left of it in {} is not run any more, and 'coffer move' again removes it: {}",
                     from.root.root.native(), answer->left);
    return {};
}

Result<int> move(Context const& context, MoveOptions const& options) {
    auto const from = TRY(context.location(options.name));
    auto const to = TRY(vmm::HomeRoot::resolve(options.to));
    auto const record = TRY(vmm::read_host_record(from.host_record()));
    bool const has_left = record && record->standing == vmm::Standing::HandedOver;
    if (!has_left && TRY(vmm::home_user(from))) {
        TRY(move_running(from, to));
        return to_int(ExitCode::Ok);
    }
    {
        ProgressLine line(fmt::format("moving '{}'", from.name));
        TRY(vmm::move_home(from, to, [&](uint64_t done, uint64_t total) -> Result<void> {
            line.show(done, total);
            return {};
        }));
    }
    print_line(fmt::format("VM '{}' is in {} now", from.name, to.root.native()));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_move(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("move", "Move a VM to another folder for homes, such as other storage, while it is "
                                            "off, suspended or running");
    auto options = std::make_shared<MoveOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    verb->add_option("--home-root", options->to,
                     "Where to: its folder for homes. Where the VM is now, $COFFER_HOME or --home-root before 'move' "
                     "says")
        ->required()
        ->type_name("DIR");
    verb->footer("A VM that runs goes on in its process and on its terminal, and stands still for a moment only: the "
                 "home, with encrypted disks and snapshots, is copied while the guest runs, then what it wrote "
                 "meanwhile. Ctrl-C leaves it where it was. Disk images that lie elsewhere stay there.");
    verb->callback([&context, options] { context.action = [&context, options] { return move(context, *options); }; });
}

} // namespace coffer::cli
