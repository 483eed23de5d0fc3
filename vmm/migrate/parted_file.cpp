#include "vmm/migrate/parted_file.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

namespace coffer::vmm::migrate {

Result<PartedFile> PartedFile::create(std::filesystem::path path, uint64_t size, bool reserve) {
    auto fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW);
    if (!fd && fd.error().code() == ErrorCode::AlreadyExists) return in_the_way(path);
    if (!fd) return std::move(fd).error();
    PartedFile file(std::move(path), std::move(*fd), size, reserve);
    if (::ftruncate(file.m_fd.get(), static_cast<off_t>(size)) != 0)
        return errno_error(errno, fmt::format("cannot make {} {} bytes long", file.m_path.native(), size));
    if (reserve && size > 0 && ::fallocate(file.m_fd.get(), 0, 0, static_cast<off_t>(size)) != 0 && errno != EOPNOTSUPP)
        return errno_error(errno, fmt::format("cannot allocate {} bytes for {}", size, file.m_path.native()));
    return file;
}

Error PartedFile::in_the_way(std::filesystem::path const& path) {
    return make_error(
        ErrorCode::AlreadyExists,
        "there is a file {} already: remove it, if it was left by a migration that was cut short, or have "
        "copies go elsewhere",
        path.native());
}

Result<void> PartedFile::write(uint64_t offset, Bytes bytes) {
    COFFER_ASSERT(offset <= m_size && bytes.size() <= m_size - offset);
    m_unsynced = true;
    return pwrite_all(m_fd.get(), bytes, offset, m_path);
}

Result<void> PartedFile::zero(uint64_t offset, uint64_t size) {
    COFFER_ASSERT(offset <= m_size && size <= m_size - offset);
    m_unsynced = true;
    int const mode = m_reserve ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE;
    if (::fallocate(m_fd.get(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(size)) == 0)
        return {};
    if (errno != EOPNOTSUPP && errno != EINVAL)
        return errno_error(errno, fmt::format("cannot write zeros to {}", m_path.native()));
    ByteVector const zeros(std::min<uint64_t>(size, uint64_t{1} << 20));
    for (uint64_t done = 0; done < size; done += zeros.size())
        TRY(pwrite_all(m_fd.get(), Bytes(zeros).first(std::min<uint64_t>(zeros.size(), size - done)), offset + done,
                       m_path));
    return {};
}

Result<void> PartedFile::sync() {
    if (!m_unsynced) return {};
    if (::fsync(m_fd.get()) != 0)
        return errno_error(errno, fmt::format("cannot write {} to the disk", m_path.native()));
    m_unsynced = false;
    if (m_named) return {};
    TRY(sync_folder(m_path.parent_path()));
    m_named = true;
    return {};
}

} // namespace coffer::vmm::migrate
