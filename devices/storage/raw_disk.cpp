#include "devices/storage/raw_disk.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace coffer::devices {

namespace {

constexpr uint64_t k_sector = 512;
constexpr uint64_t k_direct_alignment = 4096; // what every disk with O_DIRECT takes
constexpr uint64_t k_bounce_size = 1 << 20;

Result<uint64_t> disk_size(int fd, std::filesystem::path const& path) {
    struct stat status {};
    if (::fstat(fd, &status) != 0) return errno_error(errno, fmt::format("cannot look at disk '{}'", path.string()));
    if (S_ISREG(status.st_mode)) return static_cast<uint64_t>(status.st_size);
    if (!S_ISBLK(status.st_mode))
        return make_error(ErrorCode::Unsupported, "'{}' is neither a file nor a block device", path.string());
    uint64_t size = 0;
    // SAFETY: BLKGETSIZE64 writes one 64-bit integer (linux/fs.h).
    if (::ioctl(fd, BLKGETSIZE64, &size) != 0)
        return errno_error(errno, fmt::format("cannot get the size of block device '{}'", path.string()));
    return size;
}

Result<void> lock_disk(int fd, bool shared, std::filesystem::path const& path) {
    struct flock lock {};
    lock.l_type = static_cast<short>(shared ? F_RDLCK : F_WRLCK);
    lock.l_whence = SEEK_SET;
    if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return {};
    if (errno == EAGAIN || errno == EACCES)
        return make_error(ErrorCode::Busy, "disk '{}' is in use by another virtual machine; power that one off first",
                          path.string());
    return errno_error(errno, fmt::format("cannot lock disk '{}'", path.string()));
}

} // namespace

Result<uint64_t> RawDisk::size_of(std::filesystem::path const& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0)
        return errno_error(errno, fmt::format("cannot look at disk '{}'", path.string()));
    // Opening a pipe waits, and opening some devices does something.
    if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
        return make_error(ErrorCode::Unsupported, "'{}' is neither a file nor a block device", path.string());
    auto const fd = TRY(open_file(path, O_RDONLY));
    return disk_size(fd.get(), path);
}

void RawDisk::unlock() noexcept {
    struct flock lock {};
    lock.l_type = F_UNLCK;
    lock.l_whence = SEEK_SET;
    // SAFETY: F_OFD_SETLK takes a struct flock with l_pid 0. Unlocking what is open does not fail.
    ::fcntl(m_fd.get(), F_OFD_SETLK, &lock);
}

Result<void> RawDisk::lock() {
    return lock_disk(m_fd.get(), m_options.read_only, m_path);
}

void RawDisk::FreeDeleter::operator()(std::byte* memory) const noexcept {
    std::free(memory);
}

RawDisk::RawDisk(std::filesystem::path path, Options options, UniqueFd fd, uint64_t size)
    : m_path(std::move(path)), m_options(options), m_fd(std::move(fd)), m_size(size) {
    if (!options.direct) return;
    m_bounce.reset(static_cast<std::byte*>(std::aligned_alloc(k_direct_alignment, k_bounce_size)));
    COFFER_ASSERT(m_bounce);
}

Result<std::unique_ptr<RawDisk>> RawDisk::open(std::filesystem::path const& path, Options options) {
    int flags = (options.read_only ? O_RDONLY : O_RDWR) | (options.direct ? O_DIRECT : 0);
    auto fd = open_file(path, flags);
    if (!fd && options.direct && open_file(path, flags & ~O_DIRECT))
        return make_error(ErrorCode::Unsupported,
                          "the file system of disk '{}' has no direct I/O; use the page cache for this disk",
                          path.string());
    if (!fd) return std::move(fd).error();
    TRY(lock_disk(fd->get(), options.read_only, path));
    uint64_t size = TRY(disk_size(fd->get(), path));
    uint64_t unit = options.direct ? k_direct_alignment : k_sector;
    if (size == 0 || size % unit != 0)
        return make_error(ErrorCode::Corrupt,
                          "disk '{}' has {} bytes, which is no multiple of {}; grow it with truncate(1)", path.string(),
                          size, unit);
    return std::unique_ptr<RawDisk>(new RawDisk(path, options, std::move(*fd), size));
}

bool RawDisk::aligned(uint64_t offset, Bytes bytes) const noexcept {
    if (!m_options.direct) return true;
    // SAFETY: the address is looked at as a number only.
    auto address = reinterpret_cast<uintptr_t>(bytes.data());
    return (offset | bytes.size() | address) % k_direct_alignment == 0;
}

Result<void> RawDisk::read(uint64_t offset, MutBytes to) {
    COFFER_ASSERT(offset <= m_size && to.size() <= m_size - offset);
    if (aligned(offset, to)) return pread_all(m_fd.get(), to, offset, m_path);
    while (!to.empty()) {
        uint64_t first = align_down(offset, k_direct_alignment);
        uint64_t skip = offset - first;
        uint64_t piece = std::min<uint64_t>(to.size(), k_bounce_size - skip);
        MutBytes buffer(m_bounce.get(), align_up(skip + piece, k_direct_alignment));
        TRY(pread_all(m_fd.get(), buffer, first, m_path));
        std::copy_n(buffer.begin() + static_cast<std::ptrdiff_t>(skip), piece, to.begin());
        to = to.subspan(piece);
        offset += piece;
    }
    return {};
}

Result<void> RawDisk::write(uint64_t offset, Bytes from) {
    COFFER_ASSERT(!m_options.read_only && offset <= m_size && from.size() <= m_size - offset);
    if (aligned(offset, from)) return pwrite_all(m_fd.get(), from, offset, m_path);
    while (!from.empty()) {
        uint64_t first = align_down(offset, k_direct_alignment);
        uint64_t skip = offset - first;
        uint64_t piece = std::min<uint64_t>(from.size(), k_bounce_size - skip);
        MutBytes buffer(m_bounce.get(), align_up(skip + piece, k_direct_alignment));
        // The edges keep what is on the disk: read, change, write.
        if (skip + piece != buffer.size() || skip != 0) TRY(pread_all(m_fd.get(), buffer, first, m_path));
        std::copy_n(from.begin(), piece, buffer.begin() + static_cast<std::ptrdiff_t>(skip));
        TRY(pwrite_all(m_fd.get(), buffer, first, m_path));
        from = from.subspan(piece);
        offset += piece;
    }
    return {};
}

Result<void> RawDisk::flush() {
    if (m_options.read_only) return {};
    while (::fdatasync(m_fd.get()) != 0)
        if (errno != EINTR) return errno_error(errno, fmt::format("cannot flush disk '{}'", m_path.string()));
    return {};
}

Result<bool> RawDisk::punch_hole(uint64_t offset, uint64_t size) {
    COFFER_ASSERT(!m_options.read_only && offset <= m_size && size <= m_size - offset);
    while (::fallocate(m_fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(size)) != 0) {
        if (errno == EINTR) continue;
        if (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS) return false;
        return errno_error(errno, fmt::format("cannot deallocate in disk '{}'", m_path.string()));
    }
    return true;
}

Result<void> RawDisk::write_zeroes(uint64_t offset, uint64_t size) {
    if (TRY(punch_hole(offset, size))) return {};
    return BlockBackend::write_zeroes(offset, size);
}

Result<void> RawDisk::discard(uint64_t offset, uint64_t size) {
    (void)TRY(punch_hole(offset, size));
    return {};
}

} // namespace coffer::devices
