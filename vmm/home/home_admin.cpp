#include "vmm/home/home_admin.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/home/data_file.hpp"
#include "vmm/home/home_base.hpp"
#include "vmm/home/home_errors.hpp"
#include "vmm/home/host_record.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

// Homes in the making and in removal; names that begin with a dot are no VMs' names.
fs::path new_folder(HomeLocation const& location) {
    return location.root.vms() / ("." + location.name + ".new");
}
fs::path old_folder(HomeLocation const& location) {
    return location.root.vms() / ("." + location.name + ".old");
}

Result<void> remove_tree(fs::path const& folder) {
    std::error_code error;
    fs::remove_all(folder, error); // does not follow symbolic links
    if (error) return make_error(ErrorCode::Io, "cannot remove {}: {}", folder.native(), error.message());
    return {};
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

Result<void> write_home(fs::path const& folder, VmConfig const& config, Bytes nvram, Bytes tpm, HomeSeal const* seal,
                        NewDisks const& disks) {
    BundleContent content;
    crypto::DataEncryptionKey const* key = nullptr;
    if (seal) {
        content.keys.push_back({content.manifest.current_epoch, TRY(crypto::DataEncryptionKey::random())});
        key = &content.keys.front().key;
    }
    uint32_t const epoch = seal ? content.manifest.current_epoch : 0;
    auto encoded = encode_vm_config(config);
    content.manifest.set(TRY(write_first(folder, HomeFile::Config, config.uuid, key, epoch, encoded)));
    content.manifest.set(TRY(write_first(folder, HomeFile::Nvram, config.uuid, key, epoch, nvram)));
    if (!tpm.empty()) content.manifest.set(TRY(write_first(folder, HomeFile::Tpm, config.uuid, key, epoch, tpm)));
    if (!disks.secrets.empty())
        content.manifest.set(TRY(write_first(folder, HomeFile::Disks, config.uuid, key, epoch, disks.secrets)));
    if (disks.make_images) TRY(disks.make_images(folder));
    if (!seal) return {};
    content.manifest.add_event(HistoryKind::Created, fmt::format("VM {}", config.uuid.to_string()));
    BundleHeader header;
    header.sequence = 1;
    header.vm = config.uuid;
    header.name = config.name;
    header.provider = seal->provider;
    header.key_id = seal->key_id.text();
    header.wrapped_key = seal->wrapped.bytes;
    header.written = wall_clock_seconds();
    return replace_file(folder / home_spec::k_keys_file, TRY(seal_bundle(header, content, seal->key)));
}

bool present(fs::path const& path) {
    std::error_code ignored;
    return fs::exists(fs::symlink_status(path, ignored));
}

Result<HomeFileSummary> summarize_file(fs::path const& path, DataFileHeader* header_out) {
    auto fd = TRY(open_file(path, O_RDONLY | O_NOFOLLOW));
    ByteVector head(home_spec::data::k_header_size);
    if (auto read = pread_all(fd.get(), head, 0, path); !read) {
        if (read.error().code() == ErrorCode::Corrupt) return damaged(path, "the file is shorter than its header");
        return std::move(read).error();
    }
    auto header = TRY(parse_data_header(head, path));
    if (header_out) *header_out = header;
    return HomeFileSummary{header.name, header.content_size, header.generation, header.written};
}

} // namespace

Result<void> create_home(HomeLocation const& location, VmConfig const& config, Bytes nvram,
                         std::optional<HomeSeal> seal, Bytes tpm, NewDisks const& disks) {
    TRY(check_vm_config(config));
    COFFER_ASSERT(config.name == location.name);
    COFFER_ASSERT(tpm.empty() || config.tpm != TpmKind::None);
    COFFER_ASSERT(seal || disks.secrets.empty());
    if (!seal && config.tpm != TpmKind::None)
        return make_error(ErrorCode::InvalidArgument, "a TPM's state is kept in encrypted homes only");
    auto folder = location.folder();
    auto already_there = [&] {
        return make_error(ErrorCode::AlreadyExists, "there is a VM '{}' already ({})", location.name, folder.native());
    };
    TRY(make_folders(location.root.vms()));
    if (present(folder)) return already_there();

    auto making = new_folder(location);
    TRY(make_folders(making));
    auto lock = TRY(HomeLock::acquire(making));
    TRY(clear_new_folder(making));
    auto made = [&]() -> Result<void> {
        TRY(write_home(making, config, nvram, tpm, seal ? &*seal : nullptr, disks));
        TRY(sync_folder(making));
        // Another process may have made the same VM before this one had the lock. The record comes first: a crash
        // between the two steps leaves a record of a home that never was, which the next create replaces.
        if (present(folder)) return already_there();
        TRY(write_host_record(location.host_record(), {config.uuid, seal.has_value(), seal ? uint64_t{1} : 0}));
        if (::renameat2(AT_FDCWD, making.c_str(), AT_FDCWD, folder.c_str(), RENAME_NOREPLACE) != 0)
            return errno_error(errno, fmt::format("cannot rename {} to {}", making.native(), folder.native()));
        return sync_folder(location.root.vms());
    }();
    if (!made) {
        // The first error is the one to report.
        [[maybe_unused]] auto cleaned = remove_tree(making);
    }
    return made;
}

Result<void> remove_home(HomeLocation const& location) {
    TRY(check_vm_name(location.name));
    auto folder = location.folder();
    if (!present(folder))
        return make_error(ErrorCode::NotFound, "there is no VM '{}' in {}", location.name,
                          location.root.vms().native());
    auto lock = TRY(HomeLock::acquire(folder));
    auto removing = old_folder(location);
    TRY(remove_tree(removing));
    if (::rename(folder.c_str(), removing.c_str()) != 0)
        return errno_error(errno, fmt::format("cannot remove {}", folder.native()));
    TRY(sync_folder(location.root.vms()));
    TRY(remove_host_record(location.host_record()));
    return remove_tree(removing);
}

Result<HomeSummary> summarize_home(HomeLocation const& location) {
    TRY(check_vm_name(location.name));
    auto folder = location.folder();
    if (!present(folder))
        return make_error(ErrorCode::NotFound, "there is no VM '{}' in {}", location.name,
                          location.root.vms().native());
    HomeSummary summary;
    summary.name = location.name;
    summary.running = TRY(HomeLock::holder(folder));
    auto keys_path = folder / home_spec::k_keys_file;
    if (present(keys_path)) {
        auto bytes = read_file(keys_path, home_spec::keys::k_prefix_size + home_spec::keys::k_max_header +
                                              home_spec::keys::k_max_sealed);
        if (!bytes) {
            if (bytes.error().code() != ErrorCode::Corrupt) return std::move(bytes).error();
            return damaged(keys_path, "the file cannot be a keys file");
        }
        auto parsed = TRY(parse_bundle(*bytes, keys_path));
        summary.encrypted = true;
        summary.uuid = parsed.header.vm;
        summary.provider = parsed.header.provider;
        summary.key_id = parsed.header.key_id;
        summary.sequence = parsed.header.sequence;
    }
    for (HomeFile file : k_home_files) {
        auto path = folder / file_name(file);
        if (!present(path)) continue;
        DataFileHeader header;
        summary.files.push_back(TRY(summarize_file(path, &header)));
        if (!summary.encrypted) summary.uuid = header.vm;
    }
    return summary;
}

Result<std::optional<pid_t>> home_user(HomeLocation const& location) {
    return HomeLock::holder(location.folder());
}

Result<std::vector<std::string>> list_homes(HomeRoot const& root) {
    std::vector<std::string> names;
    std::error_code error;
    fs::directory_iterator it(root.vms(), error);
    if (error == std::errc::no_such_file_or_directory) return names;
    for (fs::directory_iterator end; !error && it != end; it.increment(error)) {
        auto name = it->path().filename().native();
        std::error_code ignored;
        if (check_vm_name(name) && it->is_directory(ignored)) names.push_back(std::move(name));
    }
    if (error) return make_error(ErrorCode::Io, "cannot read {}: {}", root.vms().native(), error.message());
    std::sort(names.begin(), names.end());
    return names;
}

} // namespace coffer::vmm
