// What a backup takes from an open home.
#include "base/file.hpp"
#include "vmm/home/encrypted_home.hpp"
#include "vmm/home/home_errors.hpp"
#include "vmm/home/plain_home.hpp"

namespace coffer::vmm {

namespace {

constexpr std::array k_backed_up = {HomeFile::Config, HomeFile::Nvram, HomeFile::Tpm, HomeFile::Disks,
                                    HomeFile::History};

Result<void> add_file(StoredHome& stored, std::string_view name, std::filesystem::path const& path) {
    auto bytes = TRY(read_home_file(path));
    if (!bytes) return damaged(path, "the file has gone");
    stored.files.push_back({std::string(name), std::move(*bytes)});
    return {};
}

} // namespace

Result<StoredHome> EncryptedHome::stored() const {
    std::lock_guard guard(m_mutex);
    if (m_keys_behind)
        return make_error(
            ErrorCode::Io,
            "the last writing of home '{}' failed: what is on its disk is not its newest state. Try again "
            "when the disk works",
            m_location.name);
    auto const path = path_of(home_spec::k_keys_file);
    StoredHome stored;
    stored.keys = TRY(read_file(path, home_spec::keys::k_prefix_size + home_spec::keys::k_max_header +
                                          home_spec::keys::k_max_sealed));
    auto const parsed = TRY(parse_bundle(stored.keys, path));
    if (parsed.header.sequence != m_header.sequence)
        return damaged(path, "the file is another writing than the one that this process made");
    for (HomeFile file : k_backed_up) {
        auto const name = file_name(file);
        if (!m_content.manifest.find(name)) continue;
        TRY(load_checked(name));
        TRY(add_file(stored, name, path_of(name)));
    }
    return stored;
}

Result<std::optional<BackupKey>> EncryptedHome::backup_key(Bytes salt) const {
    std::lock_guard guard(m_mutex);
    return std::optional(TRY(derive_backup_key(m_key, salt)));
}

Result<StoredHome> PlainHome::stored() const {
    std::lock_guard guard(m_mutex);
    StoredHome stored;
    for (HomeFile file : k_backed_up) {
        auto const name = file_name(file);
        if (!present(name)) continue;
        TRY(load_checked(name));
        TRY(add_file(stored, name, path_of(name)));
    }
    return stored;
}

Result<std::optional<BackupKey>> PlainHome::backup_key(Bytes) const {
    return std::optional<BackupKey>();
}

} // namespace coffer::vmm
