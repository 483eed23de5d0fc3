#include "vmm/home/home_open.hpp"

#include "base/file.hpp"
#include "base/log.hpp"
#include "vmm/home/encrypted_home.hpp"
#include "vmm/home/home_build.hpp"
#include "vmm/home/home_errors.hpp"
#include "vmm/home/home_together.hpp"
#include "vmm/home/migration_journal.hpp"
#include "vmm/home/plain_home.hpp"

namespace coffer::vmm {

namespace {

constexpr size_t k_max_keys_file =
    home_spec::keys::k_prefix_size + home_spec::keys::k_max_header + home_spec::keys::k_max_sealed;

// A home that is to be written is this host's. Where the journal has it as started, the record had no time to say so.
Result<void> check_standing(HomeLocation const& location, HostRecord& record, std::optional<Uuid> const& arriving) {
    if (record.standing == Standing::HandedOver) return handed_over(location, record.migration);
    if (arriving) {
        if (record.migration == *arriving) return {};
        return make_error(ErrorCode::Busy, "home '{}' came by another migration ({})", location.name,
                          record.migration.to_string());
    }
    auto const entry = TRY(MigrationJournal(location.root).read_incoming(record.migration));
    if (!entry || entry->state != IncomingState::Started)
        return make_error(ErrorCode::Busy,
                          "VM '{}' was on its way here from another host (migration {}), which has it still as far as "
                          "this host knows: 'coffer migrate --resolve {}' there settles that, and 'coffer remove {}' "
                          "removes what came",
                          location.name, record.migration.to_string(), location.name, location.name);
    record.standing = Standing::Owner;
    record.migration = Uuid();
    return {};
}

Result<std::unique_ptr<HomeSession>> open_once(HomeLocation const& location, HomeAccess access,
                                               BundleOpener const& open_key, RollbackPolicy rollback,
                                               std::optional<Uuid> const& arriving = std::nullopt) {
    TRY(check_vm_name(location.name));
    auto folder = location.folder();
    if (!std::filesystem::is_directory(std::filesystem::symlink_status(folder))) return no_such_home(location);
    std::optional<HomeLock> lock;
    if (access == HomeAccess::Writer) lock = TRY(HomeLock::acquire(folder));
    if (lock) {
        if (auto swept = sweep_leftovers(location); !swept) log::warning("{}", swept.error().message());
    }
    auto record = TRY(read_host_record(location.host_record()));
    if (lock && record && record->standing != Standing::Owner) TRY(check_standing(location, *record, arriving));
    auto path = folder / home_spec::k_keys_file;
    auto keys_file = read_file(path, k_max_keys_file);
    if (keys_file) return EncryptedHome::open(location, std::move(lock), *keys_file, record, open_key, rollback);
    if (keys_file.error().code() == ErrorCode::Corrupt || keys_file.error().code() == ErrorCode::InvalidArgument)
        return damaged(path, "the file cannot be a keys file");
    if (keys_file.error().code() != ErrorCode::NotFound) return std::move(keys_file).error();
    if (record && record->encrypted)
        return make_error(ErrorCode::Integrity,
                          "{} is missing, and this host knows the home as encrypted. Nothing was overwritten; put back "
                          "an intact copy of the whole home",
                          path.native());
    if (rollback == RollbackPolicy::Accept)
        return make_error(ErrorCode::InvalidArgument,
                          "home '{}' is unencrypted: nothing tells an old copy of it from the newest, and there is "
                          "nothing to accept",
                          location.name);
    return PlainHome::open(location, std::move(lock), record);
}

} // namespace

Result<std::unique_ptr<HomeSession>> open_home(HomeLocation const& location, HomeAccess access,
                                               BundleOpener const& open_key, RollbackPolicy rollback) {
    COFFER_ASSERT(rollback == RollbackPolicy::Refuse || access == HomeAccess::Writer);
    // A reader may come between two steps of a writer's commit, and then sees one file new and another old.
    for (int attempts = access == HomeAccess::ReadOnly ? 3 : 1;; --attempts) {
        auto home = open_once(location, access, open_key, rollback);
        if (home && access == HomeAccess::Writer) TRY(finish_change(**home));
        if (home || home.error().code() != ErrorCode::Integrity || attempts == 1) return home;
    }
}

Result<std::unique_ptr<HomeSession>> open_arriving(HomeLocation const& location, Uuid const& migration,
                                                   BundleOpener const& open_key) {
    return open_once(location, HomeAccess::Writer, open_key, RollbackPolicy::Refuse, migration);
}

} // namespace coffer::vmm
