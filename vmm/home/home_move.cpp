#include "vmm/home/home_move.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/file.hpp"
#include "crypto/random.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/home/file_copy.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_build.hpp"
#include "vmm/home/home_files.hpp"
#include "vmm/home/home_spec.hpp"
#include "vmm/home/incoming_home.hpp"
#include "vmm/home/migration_journal.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

constexpr char const* k_this_host = "this host"; // in journals, in place of another

// A path as journals take text.
std::string plain(fs::path const& path) {
    auto text = path.native().substr(0, 255);
    std::ranges::replace_if(
        text, [](char c) { return c < ' ' || c > '~'; }, '?');
    return text;
}

Result<void> copy_files(fs::path const& from, IncomingHome& to, MoveProgress const& progress) {
    auto const files = TRY(list_home_files(from));
    uint64_t total = 0;
    for (auto const& file : files) total += file.size;
    uint64_t done = 0;
    for (auto const& file : files) {
        TRY(to.copy_file(file.name, from / file.name,
                         [&](uint64_t of_file) { return progress(done + of_file, total); }));
        done += file.size;
    }
    return {};
}

// The moment of change has passed: all that is left is to say so everywhere.
Result<void> finish_move(HomeLocation const& from, HomeLocation const& to, Uuid const& id) {
    MigrationJournal const journal(to.root);
    auto const entry = TRY(journal.read_incoming(id));
    if (!entry) return handed_over(from, id);
    if (entry->state == IncomingState::Prepared) TRY(journal.start(id));

    // Whoever has the new home open already knows from the journal that it is this root's.
    bool arrived = false;
    if (auto lock = HomeLock::acquire(to.folder())) {
        auto record = TRY(read_host_record(to.host_record()));
        if (record && record->standing == Standing::Arriving && record->migration == id) {
            record->standing = Standing::Owner;
            record->migration = Uuid();
            TRY(write_host_record(to.host_record(), *record));
        }
        arrived = true;
    }
    TRY(leave_home(from, id));
    if (arrived) TRY(journal.forget_incoming(id));
    return {};
}

// Nothing came of the move that took the home away, and nothing ever will: it is its old root's again.
Result<void> take_back(HomeLocation const& from, HomeRoot const& to, HostRecord& record) {
    auto const id = std::exchange(record.migration, Uuid());
    record.standing = Standing::Owner;
    --record.sequence;
    TRY(write_host_record(from.host_record(), record));
    TRY(MigrationJournal(to).forget_incoming(id));
    return MigrationJournal(from.root).forget_outgoing(id);
}

} // namespace

Result<void> leave_home(HomeLocation const& from, Uuid const& id) {
    MigrationJournal const journal(from.root);
    TRY(journal.note_moved(id));
    auto const removing = old_folder(from);
    TRY(remove_tree(removing));
    if (::rename(from.folder().c_str(), removing.c_str()) != 0)
        return errno_error(errno, fmt::format("the VM has moved, but {} cannot be removed", from.folder().native()));
    TRY(sync_folder(from.root.vms()));
    TRY(remove_host_record(from.host_record()));
    TRY(journal.forget_outgoing(id));
    return remove_tree(removing);
}

IncomingMigration incoming_move(Uuid const& id, Uuid const& vm, std::string name) {
    IncomingMigration incoming;
    incoming.id = id;
    incoming.vm = vm;
    incoming.name = std::move(name);
    incoming.peer_name = k_this_host;
    return incoming;
}

OutgoingMigration outgoing_move(Uuid const& id, Uuid const& vm, std::string name, HomeRoot const& to) {
    OutgoingMigration outgoing;
    outgoing.id = id;
    outgoing.vm = vm;
    outgoing.name = std::move(name);
    outgoing.peer_name = k_this_host;
    outgoing.place = plain(to.root);
    return outgoing;
}

Result<void> check_provider(HomeSummary const& summary, HomeRoot const& to) {
    if (!summary.encrypted || ProviderRegistry(to.providers()).find(summary.provider)) return {};
    return make_error(ErrorCode::KeyUnavailable,
                      "{} has not the key provider of VM '{}' ({}), so that it could not be run there: bring it by "
                      "'coffer provider backup' and 'coffer --home-root {} provider restore' first",
                      to.root.native(), summary.name, summary.provider.to_string(), to.root.native());
}

Result<bool> forget_moved(HomeLocation const& location) {
    if (present(location.folder())) return false;
    auto const record = TRY(read_host_record(location.host_record()));
    if (!record || record->standing != Standing::HandedOver) return false;
    MigrationJournal const journal(location.root);
    auto const entry = TRY(journal.read_outgoing(record->migration));
    if (!entry || entry->peer != crypto::Digest{}) return false; // another host's
    TRY(remove_host_record(location.host_record()));
    TRY(journal.forget_outgoing(record->migration));
    TRY(remove_tree(old_folder(location)));
    return true;
}

Result<void> move_home(HomeLocation const& from, HomeRoot const& to, MoveProgress const& progress) {
    if (from.root.root == to.root)
        return make_error(ErrorCode::InvalidArgument, "VM '{}' is in {} already", from.name, to.root.native());
    if (TRY(forget_moved(from))) return {};
    if (!present(from.folder())) return no_such_home(from);
    auto const lock = TRY(HomeLock::acquire(from.folder()));
    auto const summary = TRY(summarize_home(from));
    HomeLocation const target{to, from.name};
    auto record = TRY(read_host_record(from.host_record()))
                      .value_or(HostRecord{summary.uuid, summary.encrypted, summary.sequence});
    if (record.vm != summary.uuid)
        return make_error(ErrorCode::Integrity, "{} is not the home that this host knows under the name",
                          from.folder().native());
    if (record.standing == Standing::HandedOver) {
        auto const entry = TRY(MigrationJournal(to).read_incoming(record.migration));
        if (!entry || entry->state != IncomingState::Abandoned) return finish_move(from, target, record.migration);
        TRY(take_back(from, to, record));
    }
    if (record.standing == Standing::Arriving)
        return make_error(ErrorCode::Busy,
                          "VM '{}' was on its way here from another host, and is not moved before that "
                          "is settled",
                          from.name);

    TRY(check_provider(summary, to));
    TRY(forget_moved(target));
    TRY(check_may_arrive(target, record.vm, record.sequence));
    auto copy = TRY(IncomingHome::begin(target));
    TRY(copy_files(from.folder(), copy, progress));
    auto const id = TRY(crypto::random_uuid());
    TRY(copy.publish(record.vm, record.sequence, id, record.encrypted));
    TRY(MigrationJournal(to).prepare(incoming_move(id, record.vm, from.name)));
    TRY(MigrationJournal(from.root).write_outgoing(outgoing_move(id, record.vm, from.name, to)));
    record.standing = Standing::HandedOver;
    record.migration = id;
    ++record.sequence;
    TRY(write_host_record(from.host_record(), record));
    return finish_move(from, target, id);
}

} // namespace coffer::vmm
