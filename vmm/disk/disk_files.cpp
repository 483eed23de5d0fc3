#include "vmm/disk/disk_files.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "devices/storage/raw_disk.hpp"
#include "vmm/disk/disk_tags.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace spec = disk_spec;

namespace {

Result<void> check_size(NewDisk const& disk) {
    uint64_t const most =
        disk.protection == DiskProtection::Authenticated ? spec::k_max_authenticated_content : spec::k_max_content;
    if (disk.size == 0 || disk.size % spec::k_sector_size != 0 || disk.size > most)
        return make_error(ErrorCode::InvalidArgument,
                          "a disk of {} bytes is not possible: give a multiple of {}, at most {} TiB", disk.size,
                          spec::k_sector_size, most >> 40);
    return {};
}

Result<void> write_new_image(int fd, std::filesystem::path const& image, DiskSecret const& secret,
                             NewDisk const& disk) {
    DiskHeader header;
    header.protection = disk.protection;
    header.layout.content_size = disk.size;
    header.epoch = 1;
    header.disk = secret.disk;
    header.vm = disk.vm;
    header.created = wall_clock_seconds();
    auto seal = TRY(DiskSeal::create(secret.key, secret.disk));
    bool const authenticated = disk.protection == DiskProtection::Authenticated;
    if (authenticated) {
        header.layout.journal_size = disk.journal_size;
        header.generation = 1;
        header.root = TRY(DiskTags::empty_root(header.layout, seal));
    }
    if (::ftruncate(fd, static_cast<off_t>(header.layout.file_size())) != 0)
        return errno_error(errno, fmt::format("cannot make {} of {} bytes", image.native(), header.layout.file_size()));
    // So that a full disk fails the writing of a unit to its place, which the journal makes good, and not the journal.
    if (authenticated && ::fallocate(fd, 0, 0, static_cast<off_t>(header.layout.table_at())) != 0 &&
        errno != EOPNOTSUPP)
        return errno_error(errno,
                           fmt::format("cannot allocate {} bytes for {}", header.layout.table_at(), image.native()));
    auto bytes = TRY(seal_disk_header(header, seal));
    TRY(pwrite_all(fd, bytes, authenticated ? header.epoch % spec::k_header_slots * spec::k_header_size : 0, image));
    if (::fsync(fd) != 0) return errno_error(errno, fmt::format("cannot sync {}", image.native()));
    return {};
}

} // namespace

Result<void> create_disk(std::filesystem::path const& image, DiskSecret const& secret, NewDisk const& disk) {
    TRY(check_size(disk));
    UniqueFd fd(::open(image.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid() && errno == EEXIST)
        return make_error(ErrorCode::AlreadyExists, "there is a file {} already", image.native());
    if (!fd.valid()) return errno_error(errno, fmt::format("cannot make {}", image.native()));
    auto made = write_new_image(fd.get(), image, secret, disk);
    if (!made) ::unlink(image.c_str());
    return made;
}

Result<void> copy_disk(devices::BlockBackend& from, devices::BlockBackend& to, DiskProgress const& progress) {
    COFFER_ASSERT(from.size() == to.size());
    constexpr uint64_t k_piece = uint64_t{1} << 20;
    ByteVector buffer(k_piece);
    for (uint64_t at = 0; at < from.size(); at += k_piece) {
        MutBytes const piece = MutBytes(buffer).first(std::min(k_piece, from.size() - at));
        TRY(from.read(at, piece));
        // Runs of units that are not zero.
        uint64_t begin = 0;
        for (uint64_t end = 0; end < piece.size();) {
            uint64_t const unit = std::min<uint64_t>(spec::k_unit_size, piece.size() - end);
            bool const zero = all_zero(piece.subspan(end, unit));
            if (zero && end > begin) TRY(to.write(at + begin, piece.subspan(begin, end - begin)));
            end += unit;
            if (zero) begin = end;
        }
        if (begin < piece.size()) TRY(to.write(at + begin, piece.subspan(begin)));
        if (progress) progress(at + piece.size(), from.size());
    }
    return to.flush();
}

Error not_opened(std::filesystem::path const& image, Error error) {
    if (error.code() == ErrorCode::NotFound)
        return make_error(ErrorCode::Integrity, "{} is missing: put back an intact copy of the whole home",
                          image.native());
    if (error.code() == ErrorCode::Corrupt) return damaged(image, "the image cannot be a disk");
    return error;
}

Result<std::unique_ptr<EncryptedDisk>> open_disk(std::filesystem::path const& image, DiskSecret const& secret,
                                                 ExpectedDisk const& expected, bool read_only) {
    return open_disk(image, devices::RawDisk::open(image, {.read_only = read_only}), secret, expected);
}

} // namespace coffer::vmm
