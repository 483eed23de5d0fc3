#include "vmm/home/folder_lock.hpp"

#include <cerrno>
#include <fcntl.h>
#include <sys/file.h>

namespace coffer::vmm {

Result<UniqueFd> lock_folder(std::filesystem::path const& folder) {
    TRY(make_folders(folder));
    auto fd = TRY(open_file(folder / "lock", O_RDWR | O_CREAT | O_NOFOLLOW));
    while (::flock(fd.get(), LOCK_EX) != 0)
        if (errno != EINTR) return errno_error(errno, fmt::format("cannot lock {}", folder.native()));
    return fd;
}

} // namespace coffer::vmm
