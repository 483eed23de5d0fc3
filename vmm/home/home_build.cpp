#include "vmm/home/home_build.hpp"

#include <cerrno>
#include <fcntl.h>
#include <stdio.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "crypto/random.hpp"
#include "vmm/home/data_file.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/home/migration_journal.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

// Names that begin with a dot are no VMs' names.
fs::path new_folder(HomeLocation const& location) {
    return location.root.vms() / ("." + location.name + ".new");
}

// What a crash left of an earlier attempt, but for its lock, which this attempt holds.
Result<void> clear_new_folder(fs::path const& folder) {
    std::error_code error;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
        if (it->path().filename() != home_spec::k_lock_file) TRY(remove_tree(it->path()));
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", folder.native(), error.message());
    return {};
}

Result<ManifestEntry> write_first(fs::path const& folder, HomeFile file, Uuid const& vm,
                                  crypto::DataEncryptionKey const* key, uint32_t epoch, Bytes content) {
    DataFileHeader header;
    header.name = file_name(file);
    header.generation = 1;
    header.epoch = epoch;
    header.file = TRY(crypto::random_uuid());
    header.vm = vm;
    header.written = wall_clock_seconds();
    auto sealed = TRY(seal_data_file(header, key, content));
    TRY(replace_file(folder / file_name(file), sealed));
    return ManifestEntry{header.name, header.generation, header.file, header.epoch, header.layout};
}

} // namespace

bool present(fs::path const& path) {
    std::error_code ignored;
    return fs::exists(fs::symlink_status(path, ignored));
}

Result<void> remove_tree(fs::path const& folder) {
    std::error_code error;
    fs::remove_all(folder, error); // does not follow symbolic links
    if (error) return make_error(ErrorCode::Io, "cannot remove {}: {}", folder.native(), error.message());
    return {};
}

fs::path old_folder(HomeLocation const& location) {
    return location.root.vms() / ("." + location.name + ".old");
}

Error no_such_home(HomeLocation const& location) {
    auto const moved = MigrationJournal(location.root).moved_to(location.name);
    if (moved && *moved)
        return make_error(ErrorCode::NotFound, "VM '{}' has moved to {}: 'coffer --home-root {} ...' reaches it there",
                          location.name, **moved, **moved);
    return make_error(ErrorCode::NotFound, "there is no VM '{}' in {}", location.name, location.root.vms().native());
}

Error home_exists(HomeLocation const& location) {
    return make_error(ErrorCode::AlreadyExists, "there is a VM '{}' already ({})", location.name,
                      location.folder().native());
}

Result<void> sweep_leftovers(HomeLocation const& location) {
    TRY(remove_tree(old_folder(location)));
    auto making = new_folder(location);
    if (!present(making)) return {};
    auto lock = HomeLock::acquire(making);
    if (!lock && lock.error().code() == ErrorCode::Busy) return {};
    return remove_tree(making);
}

fs::path HomeInTheMaking::folder() const {
    return new_folder(m_location);
}

Result<HomeInTheMaking> HomeInTheMaking::begin(HomeLocation const& location) {
    TRY(make_folders(location.root.vms()));
    auto folder = new_folder(location);
    TRY(make_folders(folder));
    HomeInTheMaking making(location, TRY(HomeLock::acquire(folder)));
    TRY(clear_new_folder(folder));
    return making;
}

HomeInTheMaking::~HomeInTheMaking() {
    if (!m_lock || m_published) return;
    // The error that led here, if any, is the one to report; what stays is removed by the next attempt.
    [[maybe_unused]] auto cleaned = remove_tree(folder());
}

Result<void> HomeInTheMaking::write(VmConfig const& config, HomeContents const& contents, HomeSeal const* seal,
                                    uint64_t sequence) {
    TRY(check_vm_config(config));
    COFFER_ASSERT(config.name == m_location.name);
    COFFER_ASSERT(contents.tpm.empty() || config.tpm != TpmKind::None);
    COFFER_ASSERT(seal || contents.disks.secrets.empty());
    if (!seal && config.tpm != TpmKind::None)
        return make_error(ErrorCode::InvalidArgument, "a TPM's state is kept in encrypted homes only");
    auto const at = folder();
    BundleContent content;
    crypto::DataEncryptionKey const* key = nullptr;
    if (seal) {
        content.keys.push_back({content.manifest.current_epoch, TRY(crypto::DataEncryptionKey::random())});
        key = &content.keys.front().key;
    }
    uint32_t const epoch = seal ? content.manifest.current_epoch : 0;
    auto add = [&](HomeFile file, Bytes bytes) -> Result<void> {
        content.manifest.set(TRY(write_first(at, file, config.uuid, key, epoch, bytes)));
        return {};
    };
    TRY(add(HomeFile::Config, encode_vm_config(config)));
    TRY(add(HomeFile::Nvram, contents.nvram));
    if (!contents.tpm.empty()) TRY(add(HomeFile::Tpm, contents.tpm));
    if (!contents.disks.secrets.empty()) TRY(add(HomeFile::Disks, contents.disks.secrets));
    if (contents.disks.make_images) TRY(contents.disks.make_images(at));
    auto const text = contents.event_text.empty() ? fmt::format("VM {}", config.uuid.to_string()) : contents.event_text;
    if (!contents.history.empty()) {
        HistoryEvent const event{contents.history.back().number + 1, wall_clock_seconds(), contents.event,
                                 history_text(text)};
        TRY(add(HomeFile::History, encode_history(merge_history(contents.history, {event}))));
        content.manifest.event_count = event.number;
    }
    if (seal) {
        if (contents.history.empty()) content.manifest.add_event(contents.event, text);
        BundleHeader header;
        header.sequence = sequence;
        header.vm = config.uuid;
        header.name = config.name;
        header.provider = seal->provider;
        header.key_id = seal->key_id.text();
        header.wrapped_key = seal->wrapped.bytes;
        header.written = wall_clock_seconds();
        auto sealed = TRY(seal_bundle(header, content, seal->key));
        TRY(replace_file(at / home_spec::k_keys_file, sealed));
    }
    return sync_folder(at);
}

Result<void> HomeInTheMaking::publish(HostRecord const& record) {
    auto const target = m_location.folder();
    // Another process may have made the same VM before this one had the lock. The record comes first: a crash between
    // the two steps leaves a record of a home that never was, which the next create replaces.
    if (present(target)) return home_exists(m_location);
    TRY(write_host_record(m_location.host_record(), record));
    auto const making = folder();
    if (::renameat2(AT_FDCWD, making.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) != 0) {
        if (errno == EEXIST) return home_exists(m_location);
        return errno_error(errno, fmt::format("cannot rename {} to {}", making.native(), target.native()));
    }
    m_published = true;
    // Where one of the name was before is of no interest any more.
    if (auto forgotten = MigrationJournal(m_location.root).forget_moved(m_location.name); !forgotten)
        log::warning("{}", forgotten.error().message());
    return sync_folder(m_location.root.vms());
}

HomeLock HomeInTheMaking::end() {
    COFFER_ASSERT(m_lock);
    if (!m_published) {
        // What stays is removed by the next attempt.
        [[maybe_unused]] auto cleaned = remove_tree(folder());
    }
    auto lock = *std::move(m_lock);
    m_lock.reset();
    return lock;
}

Result<void> HomeInTheMaking::exchange() {
    auto const making = folder();
    auto const target = m_location.folder();
    if (::renameat2(AT_FDCWD, making.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) != 0) {
        if (errno == EINVAL)
            return make_error(ErrorCode::Unsupported,
                              "the file system of {} cannot exchange two folders in one step, which this needs so that "
                              "a crash loses nothing",
                              target.native());
        return errno_error(errno, fmt::format("cannot exchange {} and {}", making.native(), target.native()));
    }
    return sync_folder(m_location.root.vms());
}

} // namespace coffer::vmm
