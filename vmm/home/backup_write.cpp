#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.hpp"
#include "crypto/random.hpp"
#include "vmm/home/backup.hpp"
#include "vmm/home/backup_chunks.hpp"

namespace coffer::vmm {

namespace {

namespace spec = backup_spec;

class Writer {
public:
    Writer(int fd, std::filesystem::path const& name, BackupKey const* key, CopyProgress const& progress)
        : m_fd(fd), m_name(name), m_key(key), m_progress(progress) {}

    // The next part begins here.
    uint64_t position() const noexcept { return align_up(m_end, spec::k_part_alignment); }

    Result<void> add(BackupPart part, Bytes stored) {
        part.offset = position();
        part.stored_size = stored.size();
        part.digest = TRY(crypto::sha256({stored}));
        TRY(pwrite_all(m_fd, stored, part.offset, m_name));
        m_end = part.offset + part.stored_size;
        m_parts.push_back(std::move(part));
        return {};
    }
    Result<void> add_disk(BackupDisk const& disk);
    std::vector<BackupPart> take_parts() && { return std::move(m_parts); }

private:
    int m_fd;
    std::filesystem::path const& m_name;
    BackupKey const* m_key;
    CopyProgress const& m_progress;
    uint64_t m_end = spec::k_header_size;
    uint64_t m_disk_bytes = 0; // of the disks that are done
    std::vector<BackupPart> m_parts;
};

Result<void> Writer::add_disk(BackupDisk const& disk) {
    auto const& image = disk.image;
    auto const content = disk.open_content ? TRY(disk.open_content()) : nullptr;
    auto fd = TRY(open_file(image, O_RDONLY | O_NOCTTY));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", image.native()));
    if (!S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) > spec::k_max_disk)
        return make_error(ErrorCode::InvalidArgument, "disk {} is no file that a backup could hold", image.native());
    BackupPart part;
    part.name = fmt::format("{}{}", k_disk_file_prefix, disk.number);
    part.kind = BackupPartKind::Disk;
    part.content_size = static_cast<uint64_t>(info.st_size);
    part.salt = TRY(crypto::random_uuid());
    part.offset = position();
    auto chunks = TRY(BackupChunks::create(m_key, part));
    ByteVector buffer(spec::k_chunk_size);
    uint64_t next = 0; // number of the first chunk that was not looked at
    uint64_t end = part.offset;
    auto use = [&](uint64_t at, uint64_t) -> Result<void> {
        uint64_t const number = at / spec::k_chunk_size;
        if (number < next) return {}; // data and hole in one chunk
        next = number + 1;
        uint64_t const begin = number * spec::k_chunk_size;
        MutBytes const chunk = MutBytes(buffer).first(std::min(spec::k_chunk_size, part.content_size - begin));
        TRY(content ? content->read(begin, chunk) : pread_all(fd.get(), chunk, begin, image));
        TRY(m_progress(m_disk_bytes + begin));
        if (std::all_of(chunk.begin(), chunk.end(), [](std::byte b) { return b == std::byte{0}; })) return {};
        auto const stored = TRY(chunks.seal(number, chunk));
        TRY(pwrite_all(m_fd, stored, end, m_name));
        end += stored.size();
        ++part.chunks;
        return {};
    };
    // Holes of the file itself are nothing where there are layers above it.
    for (uint64_t at = 0; content && at < part.content_size; at += spec::k_chunk_size) TRY(use(at, 0));
    if (!content) TRY(for_each_data_piece(fd.get(), image, part.content_size, spec::k_chunk_size, use));
    part.stored_size = end - part.offset;
    part.digest = chunks.chain();
    m_end = end;
    m_disk_bytes += part.content_size;
    m_parts.push_back(std::move(part));
    return {};
}

} // namespace

Result<void> write_backup(HomeSession const& home, int fd, std::filesystem::path const& name,
                          BackupOptions const& options) {
    struct stat info {};
    if (::fstat(fd, &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", name.native()));
    if (!S_ISREG(info.st_mode) || info.st_size != 0)
        return make_error(ErrorCode::InvalidArgument, "{} is not an empty file, which a backup is written to",
                          name.native());
    BackupHeader header;
    TRY(crypto::random_bytes(header.salt));
    // The key comes first: a rekey between the two is then a mismatch that shows below, and not a backup that nobody
    // can open.
    auto const key = TRY(home.backup_key(header.salt));
    auto const stored = TRY(home.stored());
    header.created = wall_clock_seconds();
    header.vm = home.config().uuid;
    header.name = home.config().name;
    header.encrypted = key.has_value();
    CopyProgress const nobody = [](uint64_t) { return Result<void>(); };
    Writer writer(fd, name, key ? &*key : nullptr, options.progress ? options.progress : nobody);
    if (key) {
        auto const bundle = TRY(parse_bundle(stored.keys, home_spec::k_keys_file));
        header.provider = bundle.header.provider;
        header.provider_name = options.provider_name;
        header.provider_kind = options.provider_kind;
        header.key_id = bundle.header.key_id;
        header.sequence = bundle.header.sequence;
        BackupPart part;
        part.name = home_spec::k_keys_file;
        part.kind = BackupPartKind::Keys;
        part.content_size = stored.keys.size();
        part.written = bundle.header.written;
        TRY(writer.add(std::move(part), stored.keys));
    }
    for (auto const& file : stored.files) {
        auto const head = TRY(parse_data_header(file.bytes, file.name));
        BackupPart part;
        part.name = file.name;
        part.kind = BackupPartKind::Data;
        part.content_size = head.content_size;
        part.generation = head.generation;
        part.written = head.written;
        TRY(writer.add(std::move(part), file.bytes));
    }
    for (auto const& disk : options.disks) TRY(writer.add_disk(disk));
    header.parts = std::move(writer).take_parts();
    // The header comes last: until it is there the file is no backup.
    auto const bytes = TRY(encode_backup_header(header, key ? &*key : nullptr));
    TRY(pwrite_all(fd, bytes, 0, name));
    if (::ftruncate(fd, static_cast<off_t>(header.file_size())) != 0)
        return errno_error(errno, fmt::format("cannot set the size of {}", name.native()));
    if (::fsync(fd) != 0) return errno_error(errno, fmt::format("cannot sync {}", name.native()));
    return {};
}

} // namespace coffer::vmm
