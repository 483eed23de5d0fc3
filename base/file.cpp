#include "base/file.hpp"

#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace coffer {

void UniqueFd::reset() noexcept {
    if (m_fd >= 0) ::close(m_fd);
    m_fd = -1;
}

Result<UniqueFd> open_file(std::filesystem::path const& path, int flags, mode_t mode) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
    if (!fd.valid()) return errno_error(errno, fmt::format("cannot open {}", path.native()));
    return fd;
}

Result<ByteVector> read_file(std::filesystem::path const& path, size_t limit) {
    auto fd = TRY(open_file(path, O_RDONLY | O_NOCTTY));
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", path.native()));
    if (!S_ISREG(info.st_mode))
        return make_error(ErrorCode::InvalidArgument, "{} is not a regular file", path.native());
    if (static_cast<uint64_t>(info.st_size) > limit)
        return make_error(ErrorCode::Corrupt, "{} has {} bytes; at most {} are expected", path.native(), info.st_size,
                          limit);
    ByteVector content(static_cast<size_t>(info.st_size));
    TRY(pread_all(fd.get(), content, 0, path));
    return content;
}

Result<void> pread_all(int fd, MutBytes to, uint64_t offset, std::filesystem::path const& name) {
    while (!to.empty()) {
        ssize_t count = ::pread(fd, to.data(), to.size(), static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno_error(errno, fmt::format("cannot read {}", name.native()));
        if (count == 0) return make_error(ErrorCode::Corrupt, "{} ends at byte {}, too early", name.native(), offset);
        to = to.subspan(static_cast<size_t>(count));
        offset += static_cast<uint64_t>(count);
    }
    return {};
}

Result<void> pwrite_all(int fd, Bytes from, uint64_t offset, std::filesystem::path const& name) {
    while (!from.empty()) {
        ssize_t count = ::pwrite(fd, from.data(), from.size(), static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno_error(errno, fmt::format("cannot write {}", name.native()));
        from = from.subspan(static_cast<size_t>(count));
        offset += static_cast<uint64_t>(count);
    }
    return {};
}

Result<void> write_all(int fd, Bytes from, std::string_view name) {
    while (!from.empty()) {
        ssize_t count = ::write(fd, from.data(), from.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return errno_error(errno, fmt::format("cannot write {}", name));
        from = from.subspan(static_cast<size_t>(count));
    }
    return {};
}

Result<void> replace_file(std::filesystem::path const& path, Bytes content, mode_t mode) {
    auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
    auto temporary = folder / ("." + path.filename().native() + ".tmp");
    auto written = [&]() -> Result<void> {
        auto fd = TRY(open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode));
        TRY(pwrite_all(fd.get(), content, 0, temporary));
        if (::fsync(fd.get()) != 0) return errno_error(errno, fmt::format("cannot sync {}", temporary.native()));
        if (::rename(temporary.c_str(), path.c_str()) != 0)
            return errno_error(errno, fmt::format("cannot rename {} to {}", temporary.native(), path.native()));
        return {};
    }();
    if (!written) {
        ::unlink(temporary.c_str());
        return written;
    }
    return sync_folder(folder);
}

Result<void> sync_folder(std::filesystem::path const& folder) {
    auto fd = TRY(open_file(folder, O_RDONLY | O_DIRECTORY));
    if (::fsync(fd.get()) != 0) return errno_error(errno, fmt::format("cannot sync folder {}", folder.native()));
    return {};
}

Result<void> make_folders(std::filesystem::path const& folder) {
    if (::mkdir(folder.c_str(), 0700) == 0)
        return sync_folder(folder.has_parent_path() ? folder.parent_path() : std::filesystem::path("."));
    if (errno == EEXIST) {
        struct stat info {};
        if (::stat(folder.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return {};
        return make_error(ErrorCode::AlreadyExists, "{} is in the way: it is not a folder", folder.native());
    }
    if (errno != ENOENT || !folder.has_parent_path() || folder.parent_path() == folder)
        return errno_error(errno, fmt::format("cannot make folder {}", folder.native()));
    TRY(make_folders(folder.parent_path()));
    return make_folders(folder);
}

Result<void> remove_file(std::filesystem::path const& path) {
    if (::unlink(path.c_str()) != 0) {
        if (errno == ENOENT) return {};
        return errno_error(errno, fmt::format("cannot remove {}", path.native()));
    }
    return sync_folder(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
}

} // namespace coffer
