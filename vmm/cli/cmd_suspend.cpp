// coffer suspend NAME
#include <thread>

#include <CLI/CLI.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/saved.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

namespace {

struct SuspendOptions {
    std::string name;
    bool compress = false;
};

Result<int> suspend(Context const& context, SuspendOptions const& options) {
    auto location = TRY(context.location(options.name));
    auto client = TRY(vmm::control::Client::connect(location));
    {
        ProgressLine line("saving");
        TRY(client.call(vmm::control::SuspendRequest{options.compress}, {.on_progress = [&](auto const& progress) {
                            line.show(progress.done, progress.total);
                        }}));
    }
    // Saved and durable; what is left is the end of its process.
    while (TRY(vmm::home_user(location))) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    print_line(fmt::format("VM '{}' is suspended", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_suspend(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("suspend", "Save a running VM, memory and all, in its home, and end its process");
    auto options = std::make_shared<SuspendOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    verb->add_flag("--compress", options->compress, "Compress memory (zstd): a smaller file, in more time");
    verb->callback(
        [&context, options] { context.action = [&context, options] { return suspend(context, *options); }; });
}

} // namespace coffer::cli
