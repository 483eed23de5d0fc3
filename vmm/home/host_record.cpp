#include "vmm/home/host_record.hpp"

#include <algorithm>

#include "base/file.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

namespace spec = home_spec::host;

Result<std::optional<HostRecord>> read_host_record(std::filesystem::path const& path) {
    auto damaged_record = [&] {
        return make_error(ErrorCode::Integrity,
                          "{}: this host's record of the home is damaged, so that an old copy of the home could not be "
                          "told from the newest. If you know that the home is the newest, remove that file",
                          path.native());
    };
    auto file = read_file(path, spec::k_size);
    if (!file) {
        if (file.error().code() == ErrorCode::NotFound) return std::optional<HostRecord>();
        if (file.error().code() == ErrorCode::Corrupt) return damaged_record();
        return std::move(file).error();
    }
    if (file->size() != spec::k_size) return damaged_record();
    Bytes const bytes = *file;
    auto digest = TRY(crypto::sha256({bytes.first(spec::k_digest_at)}));
    if (!std::equal(spec::k_magic.begin(), spec::k_magic.end(), bytes.begin()) ||
        load_le<uint32_t>(bytes, spec::k_version_at) != home_spec::k_version ||
        !std::equal(digest.begin(), digest.end(), bytes.begin() + spec::k_digest_at))
        return damaged_record();
    Uuid::Storage vm;
    std::memcpy(vm.data(), bytes.data() + spec::k_vm_uuid_at, vm.size());
    HostRecord record;
    record.vm = Uuid(vm);
    record.encrypted = (load_le<uint32_t>(bytes, spec::k_flags_at) & spec::k_flag_encrypted) != 0;
    record.sequence = load_le<uint64_t>(bytes, spec::k_sequence_at);
    auto const flags = load_le<uint32_t>(bytes, spec::k_flags_at);
    bool const handed_over = (flags & spec::k_flag_handed_over) != 0;
    bool const arriving = (flags & spec::k_flag_arriving) != 0;
    if (handed_over && arriving) return damaged_record();
    record.standing = handed_over ? Standing::HandedOver : arriving ? Standing::Arriving : Standing::Owner;
    Uuid::Storage migration;
    std::memcpy(migration.data(), bytes.data() + spec::k_migration_at, migration.size());
    record.migration = Uuid(migration);
    return std::optional(record);
}

Result<void> write_host_record(std::filesystem::path const& path, HostRecord const& record) {
    std::array<std::byte, spec::k_size> bytes{};
    std::memcpy(bytes.data(), spec::k_magic.data(), spec::k_magic.size());
    store_le<uint32_t>(bytes, spec::k_version_at, home_spec::k_version);
    uint32_t const standing = record.standing == Standing::HandedOver ? spec::k_flag_handed_over
                              : record.standing == Standing::Arriving ? spec::k_flag_arriving
                                                                      : 0;
    store_le<uint32_t>(bytes, spec::k_flags_at, (record.encrypted ? spec::k_flag_encrypted : 0) | standing);
    std::memcpy(bytes.data() + spec::k_migration_at, record.migration.bytes().data(), Uuid::k_size);
    std::memcpy(bytes.data() + spec::k_vm_uuid_at, record.vm.bytes().data(), Uuid::k_size);
    store_le<uint64_t>(bytes, spec::k_sequence_at, record.sequence);
    auto digest = TRY(crypto::sha256({Bytes(bytes).first(spec::k_digest_at)}));
    std::memcpy(bytes.data() + spec::k_digest_at, digest.data(), digest.size());
    TRY(make_folders(path.parent_path()));
    return replace_file(path, bytes);
}

Result<void> remove_host_record(std::filesystem::path const& path) {
    return remove_file(path);
}

} // namespace coffer::vmm
