#include "vmm/home/migration_journal.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>

#include "base/clock.hpp"
#include "vmm/home/folder_lock.hpp"
#include "base/tagged.hpp"
#include "keyprovider/checked_file.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

constexpr CheckedFileFormat k_outgoing{"COFRMIGO", 1, 4096};
constexpr CheckedFileFormat k_incoming{"COFRMIGI", 1, 4096};
constexpr size_t k_max_text = 300;

Error damaged_entry(fs::path const& path) {
    return make_error(
        ErrorCode::Integrity,
        "{}: what this host noted of a migration is damaged, so that it cannot be told which host has the "
        "VM. Find out whether it runs on the other host before you remove that file",
        path.native());
}

// Texts reach the owner's terminal.
bool is_plain(std::string const& text) {
    return text.size() <= k_max_text &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

Result<std::optional<ByteVector>> read_entry(fs::path const& path, CheckedFileFormat const& format) {
    auto fields = read_checked_file(path, format);
    if (fields) return std::optional(std::move(*fields));
    if (fields.error().code() == ErrorCode::NotFound) return std::optional<ByteVector>();
    if (fields.error().code() == ErrorCode::Integrity) return damaged_entry(path);
    return std::move(fields).error();
}

} // namespace

Result<OutgoingMigration> decode_outgoing(Bytes fields, fs::path const& path) {
    OutgoingMigration entry;
    if (!decode_fields(fields, entry) || !check_vm_name(entry.name) || !is_plain(entry.peer_name) ||
        !is_plain(entry.place) || entry.state < OutgoingState::HandedOver || entry.state > OutgoingState::TakenBack)
        return damaged_entry(path);
    return entry;
}

Result<IncomingMigration> decode_incoming(Bytes fields, fs::path const& path) {
    IncomingMigration entry;
    if (!decode_fields(fields, entry) || !check_vm_name(entry.name) || !is_plain(entry.peer_name) ||
        entry.state < IncomingState::Prepared || entry.state > IncomingState::Abandoned)
        return damaged_entry(path);
    return entry;
}

fs::path MigrationJournal::path(char const* direction, Uuid const& id) const {
    return m_folder / fmt::format("{}-{}", direction, id.to_string());
}

Result<std::optional<OutgoingMigration>> MigrationJournal::read_outgoing(Uuid const& id) const {
    auto const at = path("out", id);
    auto fields = TRY(read_entry(at, k_outgoing));
    if (!fields) return std::optional<OutgoingMigration>();
    auto entry = TRY(decode_outgoing(*fields, at));
    if (entry.id != id) return damaged_entry(at);
    return std::optional(std::move(entry));
}

Result<std::optional<IncomingMigration>> MigrationJournal::read_incoming(Uuid const& id) const {
    auto const at = path("in", id);
    auto fields = TRY(read_entry(at, k_incoming));
    if (!fields) return std::optional<IncomingMigration>();
    auto entry = TRY(decode_incoming(*fields, at));
    if (entry.id != id) return damaged_entry(at);
    return std::optional(std::move(entry));
}

Result<void> MigrationJournal::write_outgoing(OutgoingMigration migration) const {
    TRY(make_folders(m_folder));
    migration.time = wall_clock_seconds();
    auto const at = path("out", migration.id);
    return write_checked_file(at, k_outgoing, encode_fields(std::move(migration)));
}

Result<void> MigrationJournal::forget_outgoing(Uuid const& id) const {
    return remove_file(path("out", id));
}

Result<void> MigrationJournal::note_moved(Uuid const& id) const {
    auto entry = TRY(read_outgoing(id));
    if (!entry) return {};
    entry->state = OutgoingState::Settled;
    auto const at = m_folder / ("moved-" + entry->name);
    return write_checked_file(at, k_outgoing, encode_fields(std::move(*entry)));
}

Result<std::optional<std::string>> MigrationJournal::moved_to(std::string const& name) const {
    auto const at = m_folder / ("moved-" + name);
    auto fields = TRY(read_entry(at, k_outgoing));
    if (!fields) return std::optional<std::string>();
    return std::optional(TRY(decode_outgoing(*fields, at)).place);
}

Result<void> MigrationJournal::forget_moved(std::string const& name) const {
    auto const at = m_folder / ("moved-" + name);
    std::error_code ignored;
    return fs::exists(at, ignored) ? remove_file(at) : Result<void>();
}

Result<void> MigrationJournal::write_incoming(IncomingMigration migration) const {
    migration.time = wall_clock_seconds();
    auto const at = path("in", migration.id);
    return write_checked_file(at, k_incoming, encode_fields(std::move(migration)));
}

Result<void> MigrationJournal::prepare(IncomingMigration migration) const {
    auto const guard = TRY(lock_folder(m_folder));
    if (TRY(read_incoming(migration.id)))
        return make_error(ErrorCode::AlreadyExists, "migration {} was here before", migration.id.to_string());
    migration.state = IncomingState::Prepared;
    return write_incoming(std::move(migration));
}

Result<void> MigrationJournal::start(Uuid const& id) const {
    auto const guard = TRY(lock_folder(m_folder));
    auto entry = TRY(read_incoming(id));
    if (!entry || entry->state != IncomingState::Prepared)
        return make_error(ErrorCode::Cancelled, "migration {} was given up on this host", id.to_string());
    entry->state = IncomingState::Started;
    return write_incoming(std::move(*entry));
}

Result<IncomingState> MigrationJournal::abandon(Uuid const& id) const {
    auto const guard = TRY(lock_folder(m_folder));
    auto entry = TRY(read_incoming(id));
    if (entry && entry->state != IncomingState::Prepared) return entry->state;
    if (!entry) {
        entry.emplace();
        entry->id = id;
        entry->name = "unknown";
    }
    entry->state = IncomingState::Abandoned;
    TRY(write_incoming(std::move(*entry)));
    return IncomingState::Abandoned;
}

Result<void> MigrationJournal::forget_incoming(Uuid const& id) const {
    auto const guard = TRY(lock_folder(m_folder));
    return remove_file(path("in", id));
}

Error handed_over(HomeLocation const& location, Uuid const& migration) {
    auto const entry = MigrationJournal(location.root).read_outgoing(migration);
    if (entry && *entry && (*entry)->peer == crypto::Digest{})
        return make_error(ErrorCode::Busy, "VM '{}' is on its way to {}: 'coffer move {} --home-root {}' finishes that",
                          location.name, (*entry)->place, location.name, (*entry)->place);
    auto const whom = entry && *entry ? fmt::format("host '{}' ({})", (*entry)->peer_name, (*entry)->place)
                                      : std::string("another host");
    bool const settled = entry && *entry && (*entry)->state == OutgoingState::Settled;
    if (settled)
        return make_error(ErrorCode::Busy,
                          "VM '{}' has moved to {}, and what is here is an old copy, which is not run: 'coffer remove "
                          "{}' removes it",
                          location.name, whom, location.name);
    return make_error(ErrorCode::Busy,
                      "VM '{}' was handed over to {}, which has not said whether it runs it: 'coffer migrate --resolve "
                      "{}' asks it, and settles which host has the VM",
                      location.name, whom, location.name);
}

} // namespace coffer::vmm
