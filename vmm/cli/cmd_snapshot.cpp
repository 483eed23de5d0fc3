// coffer snapshot take|list|revert|delete
#include <iostream>
#include <thread>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/progress.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/control/client.hpp"
#include "vmm/control/saved.hpp"
#include "vmm/control/stop.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::cli {

namespace {

using vmm::HomeAccess;
using vmm::SnapshotRecord;
using vmm::SnapshotStore;

struct SnapshotOptions {
    std::string name;
    std::string tag;
    std::string description;
    bool compress = false;
    bool json = false;
    bool yes = false;
    int passphrase_fd = -1;
};

Result<std::unique_ptr<vmm::HomeSession>> open_home(Context const& context, SnapshotOptions const& options,
                                                    HomeAccess access) {
    auto location = TRY(context.location(options.name));
    return vmm::unlock_home(location, Context::keeper_options(options.passphrase_fd), access);
}

Result<bool> is_running(vmm::HomeLocation const& location) {
    return TRY(vmm::home_user(location)).has_value();
}

Result<int> take(Context const& context, SnapshotOptions const& options) {
    auto location = TRY(context.location(options.name));
    ProgressLine line("taking a snapshot");
    if (TRY(is_running(location))) {
        auto client = TRY(vmm::control::Client::connect(location));
        vmm::control::SnapshotRequest request{vmm::control::SnapshotVerb::Take, options.tag, options.description,
                                              options.compress};
        auto answer = TRY(client.call(
            request, {.on_progress = [&](auto const& progress) { line.show(progress.done, progress.total); }}));
        print_line(fmt::format("Snapshot '{}' of the running VM '{}' was taken; the guest stood still for {} ms",
                               answer.tag, options.name, answer.stopped_ms));
        return to_int(ExitCode::Ok);
    }
    auto home = TRY(open_home(context, options, HomeAccess::Writer));
    auto store = TRY(SnapshotStore::open(*home));
    vmm::ImageOptions image;
    image.progress = [&](uint64_t done, uint64_t total) { line.show(done, total); };
    auto record = TRY(store.take(options.tag, options.description, nullptr, image));
    print_line(fmt::format("Snapshot '{}' of the VM '{}' was taken", record.tag, options.name));
    return to_int(ExitCode::Ok);
}

nlohmann::json to_json(vmm::SnapshotIndex const& index) {
    auto snapshots = nlohmann::json::array();
    for (auto const& record : index.snapshots) {
        auto const* parent = index.find(record.parent);
        snapshots.push_back({{"tag", record.tag},
                             {"id", record.id.to_string()},
                             {"parent", parent ? nlohmann::json(parent->tag) : nlohmann::json()},
                             {"description", record.description},
                             {"created", record.created},
                             {"running", record.running},
                             {"memory", record.memory_size},
                             {"disks", record.disks},
                             {"current", record.id == index.current}});
    }
    return {{"snapshots", snapshots}, {"suspended", !index.suspended.image.empty()}};
}

// Each below its parent.
void print_tree(vmm::SnapshotIndex const& index, Uuid const& parent, std::string const& indent) {
    for (auto const& record : index.snapshots) {
        bool is_root = !index.find(record.parent);
        if (record.parent != parent && !(is_root && parent == Uuid())) continue;
        print_line(fmt::format("{}{}{}  {}  {}{}{}", indent, record.tag, record.id == index.current ? " *" : "",
                               format_time(record.created),
                               record.running ? fmt::format("running, {}", format_size(record.memory_size)) : "off",
                               record.description.empty() ? "" : "  ", record.description));
        print_tree(index, record.id, indent + "  ");
    }
}

Result<int> list(Context const& context, SnapshotOptions const& options) {
    auto home = TRY(open_home(context, options, HomeAccess::ReadOnly));
    auto store = TRY(SnapshotStore::open(*home));
    if (options.json) {
        print_line(dump(to_json(store.index())));
        return to_int(ExitCode::Ok);
    }
    if (store.index().snapshots.empty()) print_line(fmt::format("VM '{}' has no snapshots", options.name));
    print_tree(store.index(), Uuid(), "");
    if (store.suspended()) print_line(fmt::format("VM '{}' is suspended", options.name));
    return to_int(ExitCode::Ok);
}

Result<void> confirm(std::string const& question, std::string const& word) {
    if (::isatty(STDIN_FILENO) != 1)
        return make_error(ErrorCode::InvalidArgument, "{} Give --yes if that is wanted", question);
    print_line(fmt::format("{}\nType {} to go on:", question, word));
    std::string answer;
    std::getline(std::cin, answer);
    if (answer != word) return make_error(ErrorCode::Cancelled, "nothing was changed");
    return {};
}

// A VM that runs is stopped as if its power were cut: what it would still write is given up with the rest.
Result<void> stop_running(vmm::HomeLocation const& location) {
    auto client = TRY(vmm::control::Client::connect(location));
    TRY(client.call(vmm::control::StopRequest{true}));
    while (TRY(is_running(location))) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return {};
}

Result<int> revert(Context const& context, SnapshotOptions const& options) {
    auto location = TRY(context.location(options.name));
    bool running = TRY(is_running(location));
    // Looked at before anything is stopped for it; a passphrase from a descriptor can be read once, and is needed
    // below.
    if (running && options.passphrase_fd < 0) {
        auto home = TRY(open_home(context, options, HomeAccess::ReadOnly));
        auto store = TRY(SnapshotStore::open(*home));
        TRY(store.check(options.tag));
    }
    if (!options.yes)
        TRY(confirm(fmt::format("Reverting '{}' to '{}' gives up everything since: disks, UEFI variables, TPM{}.",
                                options.name, options.tag, running ? ", and the machine that runs" : ""),
                    options.tag));
    if (running) TRY(stop_running(location));
    auto home = TRY(open_home(context, options, HomeAccess::Writer));
    TRY(refuse_template(home->config())); // it would end its being one
    auto store = TRY(SnapshotStore::open(*home));
    SnapshotRecord record;
    {
        ProgressLine line("copying disks");
        vmm::ImageOptions image;
        image.progress = [&](uint64_t done, uint64_t total) { line.show(done, total); };
        record = TRY(store.revert(options.tag, image));
    }
    print_line(fmt::format("VM '{}' is as it was at {}: disks, UEFI variables and TPM. The home's history says so.{}",
                           options.name, format_time(record.created),
                           record.running ? fmt::format(" 'coffer resume {}' goes on", options.name) : ""));
    return to_int(ExitCode::Ok);
}

Result<int> remove(Context const& context, SnapshotOptions const& options) {
    auto location = TRY(context.location(options.name));
    if (!options.yes)
        TRY(confirm(fmt::format("Snapshot '{}' of '{}' will be deleted for good.", options.tag, options.name),
                    options.tag));
    ProgressLine line("merging disks");
    if (TRY(is_running(location))) {
        auto client = TRY(vmm::control::Client::connect(location));
        TRY(client.call(vmm::control::SnapshotRequest{vmm::control::SnapshotVerb::Delete, options.tag, {}, false},
                        {.on_progress = [&](auto const& progress) { line.show(progress.done, progress.total); }}));
    } else {
        auto home = TRY(open_home(context, options, HomeAccess::Writer));
        auto store = TRY(SnapshotStore::open(*home));
        vmm::ImageOptions merging;
        merging.progress = [&](uint64_t done, uint64_t total) { line.show(done, total); };
        TRY(store.remove(options.tag, merging));
    }
    print_line(fmt::format("Snapshot '{}' of '{}' was deleted", options.tag, options.name));
    return to_int(ExitCode::Ok);
}

using Action = Result<int> (*)(Context const&, SnapshotOptions const&);

std::pair<CLI::App*, std::shared_ptr<SnapshotOptions>>
add_verb(CLI::App& group, Context& context, std::string const& verb, std::string const& help, Action action) {
    auto* sub = group.add_subcommand(verb, help);
    auto options = std::make_shared<SnapshotOptions>();
    sub->add_option("NAME", options->name, "The VM")->required();
    add_passphrase_option(*sub, options->passphrase_fd);
    sub->callback([&context, options, action] {
        context.action = [&context, options, action] { return action(context, *options); };
    });
    return {sub, options};
}

} // namespace

void register_snapshot(CLI::App& app, Context& context) {
    auto* group = app.add_subcommand("snapshot", "Points in time that a VM can go back to, TPM and all");
    group->require_subcommand(1);
    {
        auto [verb, options] = add_verb(*group, context, "take", "Keep the VM as it is, running or off", take);
        verb->add_option("TAG", options->tag, "Name of the snapshot [snapshot-N]");
        verb->add_option("--description", options->description, "A line about it");
        verb->add_flag("--compress", options->compress, "Compress memory (zstd): a smaller file, in more time");
    }
    {
        auto [verb, options] = add_verb(*group, context, "list", "Show the tree of snapshots", list);
        verb->add_flag("--json", options->json, "For programs");
    }
    {
        auto [verb, options] =
            add_verb(*group, context, "revert",
                     "Put disks, UEFI variables, TPM and machine back; a VM that runs is stopped", revert);
        verb->add_option("TAG", options->tag, "The snapshot")->required();
        verb->add_flag("--yes", options->yes, "Do not ask");
    }
    {
        auto [verb, options] = add_verb(*group, context, "delete", "Delete a snapshot", remove);
        verb->add_option("TAG", options->tag, "The snapshot")->required();
        verb->add_flag("--yes", options->yes, "Do not ask");
    }
}

} // namespace coffer::cli
