#include "vmm/home/incoming_home.hpp"

#include <fcntl.h>
#include <unistd.h>

#include "base/clock.hpp"
#include "crypto/random.hpp"
#include "vmm/home/data_file.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_base.hpp"
#include "vmm/home/home_build.hpp"
#include "vmm/home/home_errors.hpp"
#include "vmm/home/key_bundle.hpp"
#include "vmm/home/migration_journal.hpp"

namespace coffer::vmm {

namespace {

Error other_vm(HomeLocation const& location) {
    return make_error(ErrorCode::AlreadyExists, "there is a VM '{}' on this host already", location.name);
}

// A home under the name, which makes place for the one that comes; or an error.
Result<void> check_present_home(HomeLocation const& location, Uuid const& vm) {
    auto const record = TRY(read_host_record(location.host_record()));
    if (!record || record->vm != vm || record->standing == Standing::Owner) return other_vm(location);
    if (auto const user = TRY(home_user(location)))
        return make_error(ErrorCode::Busy, "VM '{}' is on its way between hosts already (process {})", location.name,
                          *user);
    if (record->standing == Standing::HandedOver) return {};
    if (TRY(MigrationJournal(location.root).abandon(record->migration)) == IncomingState::Started)
        return other_vm(location);
    return remove_arriving(location, record->migration);
}

} // namespace

Result<void> check_may_arrive(HomeLocation const& location, Uuid const& vm, uint64_t sequence) {
    TRY(check_vm_name(location.name));
    for (auto const& name : TRY(list_homes(location.root))) {
        if (name == location.name) continue;
        auto const other = summarize_home({location.root, name});
        if (other && other->uuid == vm)
            return make_error(ErrorCode::AlreadyExists, "this host has the VM already, as '{}'", name);
    }
    if (present(location.folder())) TRY(check_present_home(location, vm));
    auto const record = TRY(read_host_record(location.host_record()));
    if (record && record->vm == vm && record->sequence > sequence)
        return make_error(
            ErrorCode::Integrity,
            "this host has seen writing {} of the home of '{}', and what would come is writing {}: an old "
            "copy",
            record->sequence, location.name, sequence);
    return {};
}

IncomingHome::IncomingHome(HomeLocation location, std::unique_ptr<HomeInTheMaking> making)
    : m_location(std::move(location)), m_making(std::move(making)) {}
IncomingHome::IncomingHome(IncomingHome&&) noexcept = default;
IncomingHome::~IncomingHome() = default;

Result<IncomingHome> IncomingHome::begin(HomeLocation const& location) {
    TRY(check_vm_name(location.name));
    auto making = TRY(HomeInTheMaking::begin(location));
    return IncomingHome(location, std::make_unique<HomeInTheMaking>(std::move(making)));
}

Result<void> IncomingHome::begin_file(std::string const& name) {
    m_path = TRY(place_of(name));
    m_file = TRY(open_file(m_path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW));
    m_size = 0;
    return {};
}

Result<std::filesystem::path> IncomingHome::place_of(std::string const& name) {
    COFFER_ASSERT(m_making && name.find('/') == std::string::npos && !name.starts_with('.'));
    auto path = m_making->folder() / name;
    TRY(remove_file(path));
    return path;
}

Result<void> IncomingHome::append(Bytes bytes) {
    COFFER_ASSERT(m_file.valid());
    TRY(pwrite_all(m_file.get(), bytes, m_size, m_path));
    m_size += bytes.size();
    return {};
}

Result<void> IncomingHome::end_file() {
    COFFER_ASSERT(m_file.valid());
    if (::fsync(m_file.get()) != 0)
        return errno_error(errno, fmt::format("cannot write {} to the disk", m_path.native()));
    m_file.reset();
    return {};
}

Result<void> IncomingHome::move_disks(crypto::BundleKey const& key,
                                      std::map<size_t, std::filesystem::path> const& places) {
    COFFER_ASSERT(m_making && !m_file.valid());
    auto const keys_path = m_making->folder() / home_spec::k_keys_file;
    auto const keys = TRY(read_file(keys_path, home_spec::keys::k_prefix_size + home_spec::keys::k_max_header +
                                                   home_spec::keys::k_max_sealed));
    auto const parsed = TRY(parse_bundle(keys, keys_path));
    auto const bundle = TRY(open_bundle(parsed, key, keys_path));
    // Snapshots name disks by their paths.
    if (bundle.manifest.find(file_name(HomeFile::Snapshots)))
        return make_error(
            ErrorCode::Unsupported,
            "the VM has, or had, snapshots, which name its disks by their paths: have its disk images come "
            "to the paths that they have on the other host");
    auto const name = file_name(HomeFile::Config);
    auto const path = m_making->folder() / name;
    auto const bytes = TRY(read_home_file(path));
    auto const* entry = bundle.manifest.find(name);
    if (!bytes || !entry) return damaged(path, "the file is missing");
    auto const* old_key = bundle.key_of(TRY(parse_data_header(*bytes, path)).epoch);
    auto const* new_key = bundle.key_of(bundle.manifest.current_epoch);
    if (!old_key || !new_key) return damaged(path, "the home has no key of it");
    auto const opened = TRY(open_data_file(*bytes, {parsed.header.vm, name}, old_key, path));
    auto config = TRY(decode_vm_config(opened.content));
    for (auto const& [number, place] : places) {
        if (number >= config.disks.size()) return damaged(path, "the configuration has fewer disks");
        config.disks[number].path = place.native();
    }
    TRY(check_vm_config(config));
    auto header = opened.header;
    header.generation = entry->generation + 1;
    header.epoch = bundle.manifest.current_epoch;
    header.file = TRY(crypto::random_uuid());
    header.written = wall_clock_seconds();
    auto const sealed = TRY(seal_data_file(header, new_key, encode_vm_config(config)));
    return replace_file(path, sealed);
}

Result<void> IncomingHome::copy_file(std::string const& name, std::filesystem::path const& from,
                                     CopyProgress const& progress) {
    auto const source = TRY(open_file(from, O_RDONLY | O_NOFOLLOW));
    TRY(begin_file(name));
    TRY(copy_file_content(source.get(), from, m_file.get(), m_path, progress));
    return end_file();
}

std::filesystem::path IncomingHome::folder() const {
    COFFER_ASSERT(m_making);
    return m_making->folder();
}

Result<HomeLock> IncomingHome::publish(Uuid const& vm, uint64_t sequence, Uuid const& migration, bool encrypted) {
    COFFER_ASSERT(m_making && !m_file.valid());
    TRY(check_may_arrive(m_location, vm, sequence));
    TRY(sync_folder(m_making->folder()));
    HostRecord const record{vm, encrypted, sequence, Standing::Arriving, migration};
    if (!present(m_location.folder())) {
        TRY(m_making->publish(record));
    } else {
        // Nobody opens it to write meanwhile, and it is a copy that another host has the newest of.
        auto const old = TRY(HomeLock::acquire(m_location.folder()));
        TRY(write_host_record(m_location.host_record(), record));
        TRY(m_making->exchange());
    }
    auto lock = m_making->end();
    m_making.reset();
    return lock;
}

Result<void> remove_arriving(HomeLocation const& location, Uuid const& migration) {
    auto const record = TRY(read_host_record(location.host_record()));
    if (!record || record->standing != Standing::Arriving || record->migration != migration) return {};
    if (!present(location.folder())) return remove_host_record(location.host_record());
    return remove_home(location);
}

Result<void> reclaim(HomeLocation const& location, Uuid const& migration) {
    auto const lock = TRY(HomeLock::acquire(location.folder()));
    auto record = TRY(read_host_record(location.host_record()));
    if (!record || record->standing != Standing::HandedOver || record->migration != migration) return {};
    record->standing = Standing::Owner;
    record->migration = Uuid();
    // hand_over() had it one above the home.
    --record->sequence;
    return write_host_record(location.host_record(), *record);
}

} // namespace coffer::vmm
