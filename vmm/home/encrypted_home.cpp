#include "vmm/home/encrypted_home.hpp"

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace {

std::filesystem::path keys_path(HomeLocation const& location) {
    return location.folder() / home_spec::k_keys_file;
}

Error rolled_back(HomeLocation const& location, uint64_t found, uint64_t known) {
    return make_error(ErrorCode::Integrity,
                      "{}: home '{}' was rolled back: its keys file is writing {}, and this host has seen writing {}. "
                      "Put the newest copy of the home back. If an old copy is what you want, its TPM and UEFI state "
                      "are as old: then remove this host's record {} and run again",
                      keys_path(location).native(), location.name, found, known, location.host_record().native());
}

// Whether this writing of the file is the one that the manifest names (0) or the next one (1).
Result<uint64_t> writings_ahead(ManifestEntry const* entry, DataFileHeader const& header,
                                std::filesystem::path const& path) {
    uint64_t const known = entry ? entry->generation : 0;
    if (entry && header.generation == known && header.file == entry->file) return uint64_t{0};
    if (header.generation == known + 1) return uint64_t{1};
    if (header.generation <= known)
        return make_error(ErrorCode::Integrity,
                          "{}: the file is an old copy (writing {} where the home's keys file has {}). Nothing was "
                          "overwritten; put back the newest copy of the whole home",
                          path.native(), header.generation, known);
    return make_error(ErrorCode::Integrity,
                      "{}: the home's keys file is an old copy: it knows writing {} of this file, which is writing {}. "
                      "Nothing was overwritten; put back the newest copy of the whole home",
                      path.native(), known, header.generation);
}

} // namespace

Result<std::unique_ptr<HomeSession>> EncryptedHome::open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                         Bytes keys_file, std::optional<HostRecord> const& record,
                                                         BundleOpener const& open_key) {
    auto path = keys_path(location);
    auto parsed = TRY(parse_bundle(keys_file, path));
    if (parsed.header.name != location.name)
        return damaged(path, fmt::format("the home is that of VM '{}'", parsed.header.name));
    auto key = TRY(open_key(parsed.header));
    auto content = TRY(open_bundle(parsed, key, path));
    if (record) {
        if (record->vm != parsed.header.vm || !record->encrypted)
            return damaged(path, fmt::format("this host knows another VM ({}) under the name '{}'",
                                             record->vm.to_string(), location.name));
        if (parsed.header.sequence < record->sequence)
            return rolled_back(location, parsed.header.sequence, record->sequence);
    }
    bool const writer = lock.has_value();
    auto home = std::unique_ptr<EncryptedHome>(
        new EncryptedHome(location, std::move(lock), std::move(parsed.header), std::move(key), std::move(content)));
    home->m_first_seen = !record.has_value();
    if (!home->has(HomeFile::Config)) return damaged(path, "the home's list of files lacks the configuration");
    auto config = TRY(home->load_checked(HomeFile::Config));
    home->m_config = TRY(home->decode_config(config.content, home->m_header.vm));
    if (writer) TRY(home->verify_and_settle(record));
    return std::unique_ptr<HomeSession>(std::move(home));
}

bool EncryptedHome::has(HomeFile file) const {
    std::lock_guard guard(m_mutex);
    return m_content.manifest.find(file_name(file)) != nullptr;
}

Result<OpenedDataFile> EncryptedHome::load_checked(HomeFile file) const {
    auto path = path_of(file);
    auto const* entry = m_content.manifest.find(file_name(file));
    auto bytes = TRY(read_home_file(path));
    if (!bytes && entry)
        return make_error(ErrorCode::Integrity,
                          "{} is missing, and the home's keys file says that it was written. Nothing was overwritten; "
                          "put back an intact copy of the whole home",
                          path.native());
    if (!bytes) return make_error(ErrorCode::NotFound, "{} was never written", path.native());
    auto header = TRY(parse_data_header(*bytes, path));
    auto const* key = m_content.key_of(header.epoch);
    if (!key) return damaged(path, fmt::format("the home has no key of epoch {}", header.epoch));
    auto opened = TRY(open_data_file(*bytes, {m_header.vm, file_name(file)}, key, path));
    TRY(writings_ahead(entry, opened.header, path));
    return opened;
}

Result<ByteVector> EncryptedHome::load(HomeFile file) const {
    std::lock_guard guard(m_mutex);
    return TRY(load_checked(file)).content;
}

Result<void> EncryptedHome::verify_and_settle(std::optional<HostRecord> const& record) {
    bool ahead = false;
    for (HomeFile file : k_home_files) {
        auto opened = load_checked(file);
        if (!opened) {
            if (opened.error().code() == ErrorCode::NotFound) continue;
            return std::move(opened).error();
        }
        auto const* entry = m_content.manifest.find(file_name(file));
        if (entry && entry->file == opened->header.file) continue;
        m_content.manifest.set({std::string(file_name(file)), opened->header.generation, opened->header.file});
        ahead = true;
    }
    if (ahead) return write_keys();
    if (!record || record->sequence != m_header.sequence)
        return write_host_record(m_location.host_record(), {m_header.vm, true, m_header.sequence});
    return {};
}

Result<void> EncryptedHome::write_keys() {
    m_keys_behind = true;
    // Counted even where the write fails: it may have reached the disk all the same, and no two writings share a
    // number.
    ++m_header.sequence;
    m_header.written = wall_clock_seconds();
    auto file = TRY(seal_bundle(m_header, m_content, m_key));
    TRY(replace_file(keys_path(m_location), file));
    m_keys_behind = false;
    return write_host_record(m_location.host_record(), {m_header.vm, true, m_header.sequence});
}

Result<void> EncryptedHome::commit(HomeFile file, Bytes content) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    std::optional<VmConfig> config;
    if (file == HomeFile::Config) config = TRY(decode_config(content, m_header.vm));
    if (m_keys_behind) TRY(write_keys());

    auto& manifest = m_content.manifest;
    auto const* entry = manifest.find(file_name(file));
    DataFileHeader header;
    header.name = file_name(file);
    header.generation = entry ? entry->generation + 1 : 1;
    header.epoch = manifest.current_epoch;
    header.file = TRY(crypto::random_uuid());
    header.vm = m_header.vm;
    header.written = wall_clock_seconds();
    auto const* key = m_content.key_of(header.epoch);
    COFFER_ASSERT(key);
    auto sealed = TRY(seal_data_file(header, key, content));
    TRY(replace_file(path_of(file), sealed));
    manifest.set({header.name, header.generation, header.file});
    TRY(write_keys());
    if (config) m_config = std::move(*config);
    return {};
}

Result<ByteVector> EncryptedHome::seal(std::string_view label, Bytes content) const {
    std::lock_guard guard(m_mutex);
    DataFileHeader header;
    header.name = label;
    header.generation = 1;
    header.epoch = m_content.manifest.current_epoch;
    header.file = TRY(crypto::random_uuid());
    header.vm = m_header.vm;
    header.written = wall_clock_seconds();
    auto const* key = m_content.key_of(header.epoch);
    COFFER_ASSERT(key);
    return seal_data_file(header, key, content);
}

Result<ByteVector> EncryptedHome::open_sealed(std::string_view label, Bytes sealed) const {
    std::lock_guard guard(m_mutex);
    auto header = TRY(parse_data_header(sealed, label));
    auto const* key = m_content.key_of(header.epoch);
    if (!key) return damaged(label, fmt::format("the home has no key of epoch {}", header.epoch));
    return std::move(TRY(open_data_file(sealed, {m_header.vm, label}, key, label)).content);
}

} // namespace coffer::vmm
