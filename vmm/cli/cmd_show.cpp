// coffer show NAME
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/new_disks.hpp"
#include "vmm/cli/vm_status.hpp"
#include "vmm/cli/wording.hpp"

namespace coffer::cli {

namespace {

struct ShowOptions {
    std::string name;
    bool json = false;
    int passphrase_fd = -1;
};

void print_row(std::string_view what, std::string_view value) {
    print_line(fmt::format("{:<12} {}", what, value));
}

void print_protection(VmStatus const& status) {
    auto const& summary = *status.summary;
    if (!summary.encrypted) {
        print_row("encryption", "unencrypted");
        return;
    }
    print_row("encryption", "encrypted");
    print_row("provider", status.provider
                              ? fmt::format("{} ({})", status.provider->name, summary.provider.to_string())
                              : fmt::format("{}, which this host does not have", summary.provider.to_string()));
    print_row("key", summary.key_id);
    print_row("sequence", fmt::format("{}", summary.sequence));
}

std::string describe_layers(size_t depth) {
    if (depth == 0) return {};
    return fmt::format(", and {} {} above it in the home, for snapshots", depth, depth == 1 ? "layer" : "layers");
}

void print_config(vmm::VmConfig const& config, vmm::DiskLayers const& layers) {
    if (config.is_template) print_row("template", "yes: it is not run, 'coffer create --from' makes VMs of it");
    print_row("memory", format_size(config.memory));
    print_row("cpus", fmt::format("{}", config.cpus));
    print_row("tpm", vmm::to_string(config.tpm));
    print_row("firmware", config.firmware_code);
    print_row("secure boot", config.secure_boot ? "keys enrolled at create" : "no keys enrolled at create");
    for (auto const& disk : config.disks)
        print_row("disk", fmt::format("{}{} ({}){}", disk.path, disk.read_only ? ", read-only" : "",
                                      describe(disk.protection), describe_layers(layers.depth(disk.path))));
}

void print_history(std::vector<vmm::HistoryEvent> const& events) {
    constexpr size_t k_shown = 8;
    size_t const first = events.size() > k_shown ? events.size() - k_shown : 0;
    if (first > 0) print_row("history", fmt::format("{} older events: --json shows them", first));
    for (size_t i = first; i < events.size(); ++i)
        print_row("history", fmt::format("{} {}: {}", format_time(events[i].time), vmm::to_string(events[i].kind),
                                         events[i].text));
}

void print_status(VmStatus const& status) {
    print_row("name", status.name);
    print_row("state", to_string(status.state));
    if (!status.reason.empty()) print_row("reason", status.reason);
    if (status.summary) {
        print_row("uuid", status.summary->uuid.to_string());
        if (status.summary->running && *status.summary->running > 0)
            print_row("process", fmt::format("{}", *status.summary->running));
        if (status.live) {
            print_row("backend", status.live->backend);
            print_row("uptime", format_span(status.live->uptime_ms / 1000));
        }
        print_protection(status);
    }
    if (status.config) print_config(*status.config, status.disk_layers);
    if (status.summary)
        for (auto const& file : status.summary->files)
            print_row("file", fmt::format("{}: {}, writing {}, {}", file.name, format_size(file.content_size),
                                          file.generation, format_time(file.written)));
    print_history(status.history);
    if (status.deep_rekey_pending)
        print_line("note: a deep rekey was stopped: files are left under the old key. 'coffer rekey --deep --all' goes "
                   "on with it");
    if (status.provider && status.provider->keys_on_disk())
        print_line(unprotected_provider_warning(status.provider->name));
}

Result<int> show(Context const& context, ShowOptions const& options) {
    auto location = TRY(context.location(options.name));
    auto keeper = Context::keeper_options(options.passphrase_fd);
    // With JSON nobody is asked: it is for programs.
    keeper.may_prompt = !options.json && ::isatty(STDIN_FILENO) == 1;
    VmInspector inspector(location.root, keeper);
    auto status = TRY(inspector.inspect(options.name));
    if (options.json)
        print_line(dump(to_json(status)));
    else
        print_status(status);
    return to_int(ExitCode::Ok);
}

} // namespace

void register_show(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("show", "Show a VM: its state, how it is protected, and what it is made of");
    auto options = std::make_shared<ShowOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    verb->add_flag("--json", options->json, "Print JSON");
    add_passphrase_option(*verb, options->passphrase_fd);
    verb->callback([&context, options] { context.action = [&context, options] { return show(context, *options); }; });
}

} // namespace coffer::cli
