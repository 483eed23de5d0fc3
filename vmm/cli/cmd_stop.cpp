// coffer stop NAME
#include <thread>

#include <CLI/CLI.hpp>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/stop.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

namespace {

struct StopOptions {
    std::string name;
    bool force = false;
    double timeout = 120;
};

// A VM is off when nobody holds its home any more: what the guest was told is stored, is stored by then.
Result<int> stop(Context const& context, StopOptions const& options) {
    constexpr auto k_step = std::chrono::milliseconds(100);
    auto location = TRY(context.location(options.name));
    if (!std::filesystem::exists(location.folder())) return vmm::no_such_home(location);
    auto const end = monotonic_now() + static_cast<Nanoseconds>(options.timeout * static_cast<double>(k_ns_per_s));
    auto client = TRY(vmm::control::Client::connect(location));
    TRY(client.call(vmm::control::StopRequest{options.force}));
    while (TRY(vmm::home_user(location))) {
        if (monotonic_now() > end)
            return make_error(ErrorCode::Timeout,
                              "VM '{}' still runs: its guest did not power off when its power button was pressed; "
                              "'coffer stop --force' ends it as if its power were cut",
                              options.name);
        std::this_thread::sleep_for(k_step);
    }
    print_line(fmt::format("VM '{}' is off", options.name));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_stop(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("stop", "Power a running VM off");
    auto options = std::make_shared<StopOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    verb->add_flag("--force", options->force,
                   "Stop the machine as if its power were cut, rather than press its power button");
    verb->add_option("--timeout", options->timeout, "Wait so many SECONDS for it to be off; then exit code 124")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    verb->callback([&context, options] { context.action = [&context, options] { return stop(context, *options); }; });
}

} // namespace coffer::cli
