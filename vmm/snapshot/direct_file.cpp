#include "vmm/snapshot/direct_file.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

namespace coffer::vmm {

namespace {

// Blocks are found for so many bytes ahead: ext4 and XFS let direct writes within a file's size go on beside each
// other, and those that make it longer one by one.
constexpr uint64_t k_reserve = uint64_t{64} << 20;

} // namespace

Result<std::unique_ptr<DirectFile>> DirectFile::create(std::filesystem::path path, uint64_t start) {
    COFFER_ASSERT(start % k_alignment == 0);
    auto fd = TRY(open_file(path, O_WRONLY | O_CREAT | O_TRUNC));
    std::unique_ptr<DirectFile> file(new DirectFile(std::move(path), std::move(fd), start));
    file->set_direct(true);
    return file;
}

DirectFile::DirectFile(std::filesystem::path path, UniqueFd fd, uint64_t start)
    : m_path(std::move(path)), m_fd(std::move(fd)), m_end(start), m_reserved(start) {}

bool DirectFile::set_direct(bool direct) noexcept {
    return ::fcntl(m_fd.get(), F_SETFL, direct ? O_DIRECT : 0) == 0;
}

uint64_t DirectFile::place(size_t size) noexcept {
    COFFER_ASSERT(size % k_alignment == 0);
    uint64_t const at = m_end.fetch_add(size);
    std::lock_guard lock(m_mutex);
    if (at + size > m_reserved) {
        // Without it writing is slower, and finds the disk full by itself.
        (void)::fallocate(m_fd.get(), 0, static_cast<off_t>(m_reserved), static_cast<off_t>(k_reserve));
        m_reserved += k_reserve;
    }
    return at;
}

Result<void> DirectFile::write(Bytes from, uint64_t at) {
    while (!from.empty()) {
        ssize_t count = ::pwrite(m_fd.get(), from.data(), from.size(), static_cast<off_t>(at));
        if (count < 0 && errno == EINTR) continue;
        // Direct writes that are refused only now, or went on at half a block: the page cache takes any.
        if (count < 0 && errno == EINVAL && set_direct(false)) return pwrite_all(m_fd.get(), from, at, m_path);
        if (count < 0) return errno_error(errno, fmt::format("cannot write {}", m_path.native()));
        from = from.subspan(static_cast<size_t>(count));
        at += static_cast<uint64_t>(count);
    }
    return {};
}

Result<uint64_t> DirectFile::finish(Bytes from) {
    set_direct(false);
    uint64_t const at = m_end;
    TRY(pwrite_all(m_fd.get(), from, at, m_path));
    if (::ftruncate(m_fd.get(), static_cast<off_t>(at + from.size())) != 0)
        return errno_error(errno, fmt::format("cannot set the size of {}", m_path.native()));
    return at;
}

WriteBuffer::WriteBuffer()
    : m_data(static_cast<std::byte*>(std::aligned_alloc(DirectFile::k_alignment, k_capacity)), &std::free) {
    COFFER_ASSERT(m_data);
}

MutBytes WriteBuffer::add(size_t size) noexcept {
    COFFER_ASSERT(has_room(size));
    return MutBytes(m_data.get(), k_capacity).subspan(std::exchange(m_used, m_used + size), size);
}

Bytes WriteBuffer::padded() noexcept {
    auto const pad = add(align_up(m_used, DirectFile::k_alignment) - m_used);
    std::ranges::fill(pad, std::byte{0});
    return {m_data.get(), m_used};
}

} // namespace coffer::vmm
