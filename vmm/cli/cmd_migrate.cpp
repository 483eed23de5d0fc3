// coffer migrate NAME --to HOST:PORT: a running VM goes to another host. This process holds the connection, and never
// the VM's keys; the VM's process moves the VM, and never sees the network.
#include <thread>

#include <CLI/CLI.hpp>

#include "base/log.hpp"
#include "vmm/cli/context.hpp"
#include "vmm/cli/exit_codes.hpp"
#include "vmm/cli/host_link.hpp"
#include "vmm/cli/long_request.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/host_record.hpp"
#include "vmm/home/incoming_home.hpp"
#include "vmm/home/migration_journal.hpp"

namespace coffer::cli {

namespace {

using vmm::control::MigrationOutcome;

struct MigrateOptions {
    std::string name;
    std::string to;
    bool resolve = false;
    bool copy_disks = false;
    bool compress = false;
    unsigned downtime_ms = 30;
};

constexpr int k_retries = 10;
constexpr auto k_retry_pause = std::chrono::seconds(2);

Result<vmm::OutgoingMigration> handed_over_migration(vmm::HomeLocation const& location) {
    auto const record = TRY(vmm::read_host_record(location.host_record()));
    if (!record || !std::filesystem::exists(location.folder())) return vmm::no_such_home(location);
    if (record->standing == vmm::Standing::Owner)
        return make_error(ErrorCode::InvalidArgument, "VM '{}' is this host's: there is no migration to settle",
                          location.name);
    if (record->standing == vmm::Standing::Arriving)
        return make_error(ErrorCode::InvalidArgument,
                          "VM '{}' was on its way here: it is the host that it comes from which settles that",
                          location.name);
    auto entry = TRY(vmm::MigrationJournal(location.root).read_outgoing(record->migration));
    if (!entry)
        return make_error(ErrorCode::Integrity,
                          "what this host noted of the migration of '{}' ({}) is missing, so that nobody can be asked",
                          location.name, record->migration.to_string());
    return std::move(*entry);
}

std::string describe(vmm::OutgoingMigration const& migration) {
    return fmt::format("host '{}' ({})", migration.peer_name, migration.place);
}

// Asks once. The VM's process does it where there is one; it stands still since, and may go on.
Result<MigrationOutcome> settle_once(vmm::HomeLocation const& location, std::string const& to) {
    auto const migration = TRY(handed_over_migration(location));
    if (migration.state == vmm::OutgoingState::Settled) return MigrationOutcome::Moved;
    auto const place = TRY(vmm::TcpPlace::parse(to.empty() ? migration.place : to));
    auto link = TRY(HostLink::connect(location.root, place));
    if (link.peer().fingerprint != migration.peer)
        return make_error(ErrorCode::Permission,
                          "VM '{}' was handed over to {}, and at {} is another host, '{}', which cannot tell",
                          location.name, describe(migration), place.to_string(), link.peer().name);
    auto pumped = TRY(PumpedLink::start(std::move(link)));
    if (TRY(vmm::home_user(location))) {
        auto client = TRY(vmm::control::Client::connect(location));
        vmm::control::SettleRequest const request{migration.id, pumped->link().control_peer()};
        return TRY(client.call(request, {.descriptor = pumped->near().get(), .silence_limit = 0})).outcome;
    }
    vmm::migrate::Stream stream(std::move(pumped->near()));
    auto const outcome = TRY(vmm::migrate::settle(stream, vmm::MigrationJournal(location.root), migration,
                                                  {[&] { return vmm::reclaim(location, migration.id); }}));
    return outcome == vmm::migrate::Outcome::Moved ? MigrationOutcome::Moved : MigrationOutcome::StillHere;
}

Result<int> resolve(vmm::HomeLocation const& location, std::string const& to) {
    auto const migration = TRY(handed_over_migration(location));
    bool const alive = TRY(vmm::home_user(location)).has_value();
    auto const outcome = TRY(settle_once(location, to));
    if (outcome == MigrationOutcome::Moved)
        print_line(fmt::format("VM '{}' runs on {}; 'coffer remove {}' removes the old copy here", location.name,
                               describe(migration), location.name));
    else if (alive)
        print_line(fmt::format("VM '{}' is this host's again, and goes on", location.name));
    else
        print_line(
            fmt::format("VM '{}' is this host's again: 'coffer run {}' powers it on", location.name, location.name));
    return to_int(ExitCode::Ok);
}

// The confirmation is missing: the connection may have been lost at that very moment, and come back.
Result<int> settle_soon(vmm::HomeLocation const& location, std::string const& to) {
    std::string reason;
    for (int tries = 0; tries < k_retries && !is_cancelled(); ++tries) {
        if (tries > 0) std::this_thread::sleep_for(k_retry_pause);
        auto outcome = settle_once(location, to);
        if (outcome && *outcome == MigrationOutcome::Moved) {
            print_line(fmt::format("VM '{}' runs on the other host", location.name));
            return to_int(ExitCode::Ok);
        }
        if (outcome)
            return make_error(ErrorCode::Cancelled, "the other host gave the migration up, and VM '{}' goes on here",
                              location.name);
        reason = outcome.error().message();
    }
    return make_error(ErrorCode::Busy,
                      "VM '{}' was handed over, and the other host has not said whether it runs it ({}). It stands "
                      "still here: 'coffer migrate --resolve {}' asks again",
                      location.name, reason.empty() ? "given up" : reason, location.name);
}

Result<int> migrate(Context const& context, MigrateOptions const& options) {
    auto const location = TRY(context.location(options.name));
    if (options.resolve) return resolve(location, options.to);
    auto const place = TRY(vmm::TcpPlace::parse(options.to));
    auto client = TRY(vmm::control::Client::connect(location));
    watch_for_cancel();
    auto link = TRY(HostLink::connect(location.root, place));
    auto pumped = TRY(PumpedLink::start(std::move(link)));
    auto const peer_name = pumped->link().peer().name;
    vmm::control::MigrateRequest request;
    request.peer = pumped->link().control_peer();
    request.copy_disks = options.copy_disks;
    request.compress = options.compress;
    request.downtime_ms = options.downtime_ms;
    auto answered = [&]() -> Result<vmm::control::MigrateAnswer> {
        ProgressLine line("migrating");
        auto call = long_call(line);
        call.descriptor = pumped->near().get();
        return client.call(request, call);
    }();
    pumped.reset();
    if (!answered && answered.error().code() == ErrorCode::Cancelled && is_cancelled())
        return make_error(ErrorCode::Cancelled, "the migration was given up, and VM '{}' goes on here", options.name);
    if (!answered) return std::move(answered).error();
    if (answered->outcome == MigrationOutcome::Undecided) {
        log::warning("the other host has not confirmed that VM '{}' runs there", options.name);
        return settle_soon(location, options.to);
    }
    if (answered->outcome == MigrationOutcome::StillHere)
        return make_error(ErrorCode::Cancelled, "VM '{}' goes on here", options.name);
    // What is left here is the end of its process.
    while (TRY(vmm::home_user(location))) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    auto const disks =
        answered->disk_bytes > 0 ? fmt::format(" and {} MiB of disks", answered->disk_bytes >> 20) : std::string();
    print_line(
        fmt::format("VM '{}' runs on host '{}': downtime {:.1f} ms, {} rounds, {} MiB of memory{} sent, {:.1f} s",
                    options.name, peer_name, static_cast<double>(answered->downtime_us) / 1000, answered->rounds,
                    answered->bytes >> 20, disks, static_cast<double>(answered->total_ms) / 1000));
    return to_int(ExitCode::Ok);
}

} // namespace

void register_migrate(CLI::App& app, Context& context) {
    auto* verb = app.add_subcommand("migrate", "Move a running VM to another host, which listens by 'coffer receive'");
    auto options = std::make_shared<MigrateOptions>();
    verb->add_option("NAME", options->name, "The VM")->required();
    auto* to = verb->add_option("--to", options->to, "Where the other host listens")->type_name("HOST:PORT");
    auto* resolve = verb->add_flag("--resolve", options->resolve,
                                   "Settle a migration whose confirmation was lost: ask the other host whether it has "
                                   "the VM (at --to, where it now listens elsewhere)");
    verb->add_flag("--copy-disks", options->copy_disks,
                   "Copy disk images, too; otherwise the other host has them on shared storage, at the same path");
    verb->add_flag("--compress", options->compress, "Compress memory on its way (zstd)");
    verb->add_option("--downtime", options->downtime_ms,
                     "Switch over when what is left of memory can be expected to be sent in so many milliseconds")
        ->check(CLI::Range(1, 600'000))
        ->capture_default_str();
    verb->callback([&context, options, to, resolve] {
        if (!*to && !*resolve) throw CLI::RequiredError("--to");
        context.action = [&context, options] { return migrate(context, *options); };
    });
}

} // namespace coffer::cli
