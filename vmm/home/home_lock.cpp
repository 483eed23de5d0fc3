#include "vmm/home/home_lock.hpp"

#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

namespace {

struct flock whole_file() noexcept {
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    return lock;
}

// The holder writes its process id into the file; a lock's own l_pid is -1 for open-file-description locks.
pid_t written_pid(int fd) noexcept {
    char text[16] = {};
    ssize_t size = ::pread(fd, text, sizeof text, 0);
    pid_t pid = 0;
    if (size > 0) std::from_chars(text, text + size, pid);
    return pid > 0 ? pid : 0;
}

bool same_file(int fd, std::filesystem::path const& path) noexcept {
    struct stat open_file_info {};
    struct stat path_info {};
    return ::fstat(fd, &open_file_info) == 0 && ::stat(path.c_str(), &path_info) == 0 &&
           open_file_info.st_dev == path_info.st_dev && open_file_info.st_ino == path_info.st_ino;
}

} // namespace

Result<HomeLock> HomeLock::acquire(std::filesystem::path const& folder) {
    auto path = folder / home_spec::k_lock_file;
    auto fd = TRY(open_file(path, O_RDWR | O_CREAT | O_NOFOLLOW));
    auto lock = whole_file();
    // SAFETY: F_OFD_SETLK takes a struct flock with l_pid 0.
    if (::fcntl(fd.get(), F_OFD_SETLK, &lock) != 0) {
        if (errno != EAGAIN && errno != EACCES) return errno_error(errno, fmt::format("cannot lock {}", path.native()));
        return make_error(ErrorCode::Busy, "the home {} is in use by process {}: a VM has one writer at a time",
                          folder.native(), written_pid(fd.get()));
    }
    // The home may have been removed between open and lock.
    if (!same_file(fd.get(), path))
        return make_error(ErrorCode::NotFound, "the home {} was removed meanwhile", folder.native());
    // Of one width, so that nothing is left of a longer one: truncating would make ext4 flush at every close.
    auto text = fmt::format("{:<15}\n", ::getpid());
    TRY(pwrite_all(fd.get(), as_bytes(text), 0, path));
    return HomeLock(std::move(fd));
}

Result<std::optional<pid_t>> HomeLock::holder(std::filesystem::path const& folder) {
    auto path = folder / home_spec::k_lock_file;
    auto fd = open_file(path, O_RDONLY | O_NOFOLLOW);
    if (!fd) {
        if (fd.error().code() == ErrorCode::NotFound) return std::optional<pid_t>();
        return std::move(fd).error();
    }
    auto lock = whole_file();
    // SAFETY: F_OFD_GETLK takes a struct flock with l_pid 0 and fills it.
    if (::fcntl(fd->get(), F_OFD_GETLK, &lock) != 0)
        return errno_error(errno, fmt::format("cannot look at the lock {}", path.native()));
    if (lock.l_type == F_UNLCK) return std::optional<pid_t>();
    return std::optional<pid_t>(written_pid(fd->get()));
}

} // namespace coffer::vmm
