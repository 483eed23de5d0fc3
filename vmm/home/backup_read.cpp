#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/home/backup.hpp"
#include "vmm/home/backup_chunks.hpp"
#include "vmm/home/data_file_memory.hpp"

namespace coffer::vmm {

namespace {

namespace spec = backup_spec;

// What parsers of the home's files say, as it is for a backup.
Error in_backup(std::filesystem::path const& path, std::string_view part, Error error) {
    if (error.code() != ErrorCode::Integrity) return error;
    return damaged_backup(path, fmt::format("part {} is not what it should be", part));
}

} // namespace

Result<BackupFile> BackupFile::open(std::filesystem::path const& path) {
    auto fd = TRY(open_file(path, O_RDONLY | O_NOCTTY));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", path.native()));
    if (!S_ISREG(info.st_mode))
        return make_error(ErrorCode::InvalidArgument, "{} is not a regular file", path.native());
    auto const size = static_cast<uint64_t>(info.st_size);
    ByteVector bytes(std::min<uint64_t>(size, spec::k_header_size));
    TRY(pread_all(fd.get(), bytes, 0, path));
    auto header = TRY(parse_backup_header(bytes, size, path));
    return BackupFile(path, std::move(fd), std::move(bytes), std::move(header));
}

Result<ByteVector> BackupFile::read_part(BackupPart const& part) const {
    ByteVector bytes(part.stored_size);
    auto read = pread_all(m_fd.get(), bytes, part.offset, m_path);
    if (!read && read.error().code() == ErrorCode::Corrupt) return damaged_backup(m_path, "the file became shorter");
    TRY(std::move(read));
    auto const digest = TRY(crypto::sha256({bytes}));
    if (!crypto::equal_in_constant_time(digest, part.digest))
        return damaged_backup(m_path, fmt::format("part {} does not match its digest", part.name));
    return bytes;
}

Result<void> BackupFile::check_gaps() const {
    for (size_t i = 0; i + 1 < m_header.parts.size(); ++i) {
        uint64_t const end = m_header.parts[i].offset + m_header.parts[i].stored_size;
        ByteVector gap(m_header.parts[i + 1].offset - end); // less than k_part_alignment
        TRY(pread_all(m_fd.get(), gap, end, m_path));
        if (std::any_of(gap.begin(), gap.end(), [](std::byte b) { return b != std::byte{0}; }))
            return damaged_backup(m_path, fmt::format("something stands behind part {}", m_header.parts[i].name));
    }
    return {};
}

Result<BackupContent> BackupFile::unlock(BundleOpener const& open_key) {
    BackupContent content;
    BundleContent bundle;
    if (m_header.encrypted) {
        auto const* part = m_header.find(home_spec::k_keys_file);
        COFFER_ASSERT(part);
        auto const bytes = TRY(read_part(*part));
        auto parsed = parse_bundle(bytes, m_path);
        if (!parsed) return in_backup(m_path, part->name, std::move(parsed).error());
        auto key = TRY(open_key(parsed->header));
        m_key = TRY(derive_backup_key(key, m_header.salt));
        TRY(authenticate_backup_header(m_header_bytes, &*m_key, m_path));
        auto opened = open_bundle(*parsed, key, m_path);
        if (!opened) return in_backup(m_path, part->name, std::move(opened).error());
        bundle = std::move(*opened);
        content.seal = HomeSeal{parsed->header.provider,
                                TRY(KeyId::parse(parsed->header.key_id)),
                                {parsed->header.wrapped_key},
                                std::move(key)};
        if (parsed->header.vm != m_header.vm || parsed->header.name != m_header.name)
            return damaged_backup(m_path, "its keys are those of another VM");
    } else {
        TRY(authenticate_backup_header(m_header_bytes, nullptr, m_path));
    }
    TRY(check_gaps());
    ByteVector config;
    std::vector<HistoryEvent> history;
    for (auto const& part : m_header.parts) {
        if (part.kind != BackupPartKind::Data) continue;
        auto bytes = TRY(read_part(part));
        auto opened = [&]() -> Result<ByteVector> {
            crypto::DataEncryptionKey const* key = nullptr;
            auto const head = TRY(parse_data_header(bytes, m_path));
            if (m_header.encrypted) {
                auto const* entry = bundle.manifest.find(part.name);
                key = bundle.key_of(head.epoch);
                if (!entry || !key || entry->generation != head.generation || entry->file != head.file)
                    return damaged_backup(m_path, "it is another writing");
            }
            return std::move(
                TRY(open_data_file_in_place(std::move(bytes), {m_header.vm, part.name}, key, m_path)).content);
        }();
        if (!opened) return in_backup(m_path, part.name, std::move(opened).error());
        if (part.name == file_name(HomeFile::Config)) config = std::move(*opened);
        if (part.name == file_name(HomeFile::Nvram)) content.nvram = std::move(*opened);
        if (part.name == file_name(HomeFile::Tpm)) content.tpm = std::move(*opened);
        if (part.name == file_name(HomeFile::Disks)) content.disks = std::move(*opened);
        if (part.name == file_name(HomeFile::History)) {
            auto events = decode_history(*opened);
            if (!events) return damaged_backup(m_path, "its history is malformed");
            history = std::move(*events);
        }
    }
    content.history = merge_history(std::move(history), bundle.manifest.events);
    if (!m_header.find(file_name(HomeFile::Nvram))) return damaged_backup(m_path, "it has no UEFI variables");
    auto decoded = decode_vm_config(config);
    if (!decoded || decoded->uuid != m_header.vm || decoded->name != m_header.name)
        return damaged_backup(m_path, "it has no proper configuration of the VM");
    content.config = std::move(*decoded);
    return content;
}

Result<void> BackupFile::extract_disk(BackupPart const& part, int to, std::filesystem::path const& to_name,
                                      CopyProgress const& progress) const {
    COFFER_ASSERT(part.kind == BackupPartKind::Disk && m_header.encrypted == m_key.has_value());
    auto damaged_disk = [&] { return damaged_backup(m_path, fmt::format("part {} fails authentication", part.name)); };
    if (::ftruncate(to, static_cast<off_t>(part.content_size)) != 0)
        return errno_error(errno, fmt::format("cannot make {} {} bytes long", to_name.native(), part.content_size));
    auto chunks = TRY(BackupChunks::create(m_key ? &*m_key : nullptr, part));
    ByteVector stored(spec::k_chunk_size + spec::k_chunk_overhead);
    ByteVector content(spec::k_chunk_size);
    uint64_t at = part.offset;
    uint64_t const end = part.offset + part.stored_size;
    uint64_t next = 0;
    for (uint64_t count = 0; count < part.chunks; ++count) {
        auto const number_bytes = MutBytes(stored).first(spec::k_chunk_number_size);
        TRY(pread_all(m_fd.get(), number_bytes, at, m_path));
        uint64_t const number = load_le<uint64_t>(stored);
        if (number < next || number > (part.content_size - 1) / spec::k_chunk_size) return damaged_disk();
        next = number + 1;
        uint64_t const size = std::min(spec::k_chunk_size, part.content_size - number * spec::k_chunk_size);
        if (end - at < size + spec::k_chunk_overhead) return damaged_disk();
        auto const whole = MutBytes(stored).first(size + spec::k_chunk_overhead);
        TRY(pread_all(m_fd.get(), whole, at, m_path));
        auto opened = chunks.open(number, whole, MutBytes(content).first(size));
        if (!opened && opened.error().code() == ErrorCode::Integrity) return damaged_disk();
        TRY(std::move(opened));
        TRY(pwrite_all(to, Bytes(content).first(size), number * spec::k_chunk_size, to_name));
        at += whole.size();
        TRY(progress(number * spec::k_chunk_size + size));
    }
    if (at != end || !crypto::equal_in_constant_time(chunks.chain(), part.digest)) return damaged_disk();
    if (::fsync(to) != 0) return errno_error(errno, fmt::format("cannot sync {}", to_name.native()));
    return progress(part.content_size);
}

} // namespace coffer::vmm
