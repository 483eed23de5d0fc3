// coffer unlock NAME
#include <CLI/CLI.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

namespace {

struct UnlockOptions {
    std::string name;
    int passphrase_fd = -1;
};

// Does what a start of the VM does to its home, and no more: asks for the key, checks every file, and goes on with a
// writing that a crash stopped.
Result<int> unlock(Context const& context, UnlockOptions const& options) {
    auto location = TRY(context.location(options.name));
    if (auto user = vmm::home_user(location); user && user->has_value()) {
        print_line(fmt::format("VM '{}' is not locked: process {} has it open", options.name, **user));
        return to_int(ExitCode::Ok);
    }
    auto home = vmm::unlock_home(location, Context::keeper_options(options.passphrase_fd));
    if (!home) {
        auto const code = home.error().code();
        bool const stays_locked = code == ErrorCode::KeyUnavailable || code == ErrorCode::Integrity;
        if (!stays_locked) return std::move(home).error();
        return std::move(home).error().with_context(fmt::format("VM '{}' stays locked", options.name));
    }
    print_line(fmt::format("VM '{}' is not locked: its home opens, and every file of it is in order", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_unlock(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("unlock", "Try again to open a VM that shows as locked, and say what is missing");
    auto options = std::make_shared<UnlockOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return unlock(context, *options); }; });
}

} // namespace coffer::cli
