#include "vmm/home/home_admin.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <stdio.h>

#include "base/file.hpp"
#include "vmm/home/data_file.hpp"
#include "vmm/home/home_base.hpp"
#include "vmm/home/home_build.hpp"
#include "vmm/home/home_errors.hpp"
#include "vmm/home/host_record.hpp"
#include "vmm/home/key_bundle.hpp"

namespace coffer::vmm {

namespace {

namespace fs = std::filesystem;

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
    return create_home(location, config, HomeContents{nvram, tpm, disks}, std::move(seal));
}

Result<void> create_home(HomeLocation const& location, VmConfig const& config, HomeContents const& contents,
                         std::optional<HomeSeal> seal) {
    constexpr uint64_t k_first_sequence = 1;
    if (present(location.folder())) return home_exists(location);
    auto making = TRY(HomeInTheMaking::begin(location));
    TRY(making.write(config, contents, seal ? &*seal : nullptr, k_first_sequence));
    return making.publish({config.uuid, seal.has_value(), seal ? k_first_sequence : 0});
}

Result<void> restore_home(HomeLocation const& location, VmConfig const& config, HomeContents const& contents,
                          std::optional<HomeSeal> seal, uint64_t sequence) {
    if (present(location.folder())) return home_exists(location);
    auto const record = TRY(read_host_record(location.host_record()));
    if (record && record->vm == config.uuid) sequence = std::max(sequence, record->sequence);
    // A VM that never had an encrypted home keeps the 0 that says so.
    if (seal || sequence != 0) ++sequence;
    auto making = TRY(HomeInTheMaking::begin(location));
    TRY(making.write(config, contents, seal ? &*seal : nullptr, sequence));
    return making.publish({config.uuid, seal.has_value(), sequence});
}

Result<void> remove_home(HomeLocation const& location) {
    TRY(check_vm_name(location.name));
    auto folder = location.folder();
    if (!present(folder)) return no_such_home(location);
    auto lock = TRY(HomeLock::acquire(folder));
    auto removing = old_folder(location);
    TRY(sweep_leftovers(location));
    if (::rename(folder.c_str(), removing.c_str()) != 0)
        return errno_error(errno, fmt::format("cannot remove {}", folder.native()));
    TRY(sync_folder(location.root.vms()));
    TRY(remove_host_record(location.host_record()));
    return remove_tree(removing);
}

Result<HomeSummary> summarize_home(HomeLocation const& location) {
    TRY(check_vm_name(location.name));
    auto folder = location.folder();
    if (!present(folder)) return no_such_home(location);
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
