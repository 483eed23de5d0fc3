#include "vmm/home/plain_home.hpp"

#include "base/clock.hpp"
#include "base/file.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

Result<std::unique_ptr<HomeSession>> PlainHome::open(HomeLocation const& location, std::optional<HomeLock> lock,
                                                     std::optional<HostRecord> const& record) {
    bool const writer = lock.has_value();
    auto home = std::unique_ptr<PlainHome>(new PlainHome(location, std::move(lock)));
    auto path = home->path_of(HomeFile::Config);
    auto bytes = TRY(read_home_file(path));
    if (!bytes)
        return make_error(ErrorCode::Integrity, "{} is missing. Put back an intact copy of the whole home",
                          path.native());
    // An unencrypted home names its own VM; that the name is the right one is checked below.
    auto header = TRY(parse_data_header(*bytes, path));
    auto opened = TRY(open_data_file(*bytes, {header.vm, file_name(HomeFile::Config)}, nullptr, path));
    home->m_config = TRY(home->decode_config(opened.content, header.vm));
    if (home->m_config.tpm != TpmKind::None)
        return damaged(path, "the configuration has a TPM, and the home has no key provider");
    if (record && record->vm != header.vm)
        return damaged(path, fmt::format("this host knows another VM ({}) under the name '{}'", record->vm.to_string(),
                                         location.name));
    home->m_first_seen = !record.has_value();
    if (writer) {
        for (HomeFile file : k_home_files)
            if (home->has(file)) TRY(home->load_checked(file));
        if (!record) TRY(write_host_record(location.host_record(), {header.vm, false, 0}));
    }
    return std::unique_ptr<HomeSession>(std::move(home));
}

bool PlainHome::has(HomeFile file) const {
    std::error_code ignored;
    return std::filesystem::exists(path_of(file), ignored);
}

Result<OpenedDataFile> PlainHome::load_checked(HomeFile file) const {
    auto path = path_of(file);
    auto bytes = TRY(read_home_file(path));
    if (!bytes) return make_error(ErrorCode::NotFound, "{} was never written", path.native());
    return open_data_file(*bytes, {m_config.uuid, file_name(file)}, nullptr, path);
}

Result<ByteVector> PlainHome::load(HomeFile file) const {
    std::lock_guard guard(m_mutex);
    return TRY(load_checked(file)).content;
}

Result<void> PlainHome::commit(HomeFile file, Bytes content) {
    std::lock_guard guard(m_mutex);
    TRY(check_writer());
    if (file == HomeFile::Tpm || file == HomeFile::Disks)
        return make_error(ErrorCode::InvalidArgument, "an unencrypted home keeps no TPM state and no disk keys");
    std::optional<VmConfig> config;
    if (file == HomeFile::Config) config = TRY(decode_config(content, m_config.uuid));
    DataFileHeader header;
    header.name = file_name(file);
    header.generation = has(file) ? TRY(load_checked(file)).header.generation + 1 : 1;
    header.file = TRY(crypto::random_uuid());
    header.vm = m_config.uuid;
    header.written = wall_clock_seconds();
    auto sealed = TRY(seal_data_file(header, nullptr, content));
    TRY(replace_file(path_of(file), sealed));
    if (config) m_config = std::move(*config);
    return {};
}

Result<ByteVector> PlainHome::seal(std::string_view label, Bytes) const {
    return make_error(ErrorCode::Unsupported, "an unencrypted home has no key to seal '{}' with", label);
}

Result<ByteVector> PlainHome::open_sealed(std::string_view label, Bytes) const {
    return make_error(ErrorCode::Unsupported, "an unencrypted home has no key to open '{}' with", label);
}

} // namespace coffer::vmm
