// coffer move NAME --home-root DIR
#include <CLI/CLI.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_move.hpp"

namespace coffer::cli {

namespace {

struct MoveOptions {
    std::string name;
    std::string to;
};

Result<int> move(Context const& context, MoveOptions const& options) {
    auto const from = TRY(context.location(options.name));
    auto const to = TRY(vmm::HomeRoot::resolve(options.to));
    if (auto const user = TRY(vmm::home_user(from)))
        return make_error(ErrorCode::Busy,
                          "VM '{}' is running (process {}), and a home is moved while its VM is off or suspended: "
                          "'coffer suspend {}', this again, and 'coffer resume {} --home-root {}' let the guest go on "
                          "where it was",
                          from.name, *user, from.name, from.name, to.root.native());
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
    auto* verb = app.add_subcommand("move", "Move a VM that is off or suspended to another folder for homes, such as "
                                            "other storage");
    auto options = std::make_shared<MoveOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    verb->add_option("--home-root", options->to,
                     "Where to: its folder for homes. Where the VM is now, $COFFER_HOME or --home-root before 'move' "
                     "says")
        ->required()
        ->type_name("DIR");
    verb->callback([&context, options] { context.action = [&context, options] { return move(context, *options); }; });
}

} // namespace coffer::cli
