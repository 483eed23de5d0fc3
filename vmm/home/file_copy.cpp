#include "vmm/home/file_copy.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "base/bytes.hpp"
#include "base/file.hpp"

namespace coffer::vmm {

Result<void> for_each_data_piece(int fd, std::filesystem::path const& name, uint64_t size, uint64_t piece,
                                 std::function<Result<void>(uint64_t, uint64_t)> const& use) {
    uint64_t at = 0;
    while (at < size) {
        off_t const data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
        if (data < 0 && errno == ENXIO) return {}; // a hole to the end
        if (data < 0) return errno_error(errno, fmt::format("cannot look for the data in {}", name.native()));
        off_t const hole = ::lseek(fd, data, SEEK_HOLE);
        if (hole < 0) return errno_error(errno, fmt::format("cannot look for the holes in {}", name.native()));
        // What was already looked at stays so, whatever the file's blocks are.
        at = std::max(at, static_cast<uint64_t>(data));
        uint64_t const end = std::min(size, static_cast<uint64_t>(hole));
        while (at < end) {
            uint64_t const next = std::min(end, (at / piece + 1) * piece);
            TRY(use(at, next - at));
            at = next;
        }
    }
    return {};
}

namespace {
bool share_blocks(int from, int to) noexcept {
    // SAFETY: FICLONE takes the source's descriptor by value. It fails where the file system shares no blocks, or is
    // another one.
    return ::ioctl(to, FICLONE, from) == 0;
}
} // namespace

Result<bool> share_file_content(int from, int to, std::filesystem::path const& to_name) {
    if (!share_blocks(from, to)) return false;
    if (::fsync(to) != 0) return errno_error(errno, fmt::format("cannot sync {}", to_name.native()));
    return true;
}

Result<void> copy_disk_content(devices::BlockBackend& content, int to, std::filesystem::path const& to_name,
                               CopyProgress const& progress) {
    constexpr uint64_t k_piece = uint64_t{64} << 10;
    if (::ftruncate(to, static_cast<off_t>(content.size())) != 0)
        return errno_error(errno, fmt::format("cannot make {} {} bytes long", to_name.native(), content.size()));
    ByteVector buffer(k_piece);
    for (uint64_t at = 0; at < content.size(); at += k_piece) {
        auto const piece = MutBytes(buffer).first(std::min(k_piece, content.size() - at));
        TRY(content.read(at, piece));
        TRY(progress(at));
        if (std::ranges::all_of(piece, [](std::byte b) { return b == std::byte{0}; })) continue;
        TRY(pwrite_all(to, piece, at, to_name));
    }
    if (::fsync(to) != 0) return errno_error(errno, fmt::format("cannot sync {}", to_name.native()));
    return progress(content.size());
}

Result<void> copy_file_content(int from, std::filesystem::path const& from_name, int to,
                               std::filesystem::path const& to_name, CopyProgress const& progress) {
    constexpr uint64_t k_piece = uint64_t{1} << 20;
    struct stat info {};
    if (::fstat(from, &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", from_name.native()));
    auto const size = static_cast<uint64_t>(info.st_size);
    if (!share_blocks(from, to)) {
        if (::ftruncate(to, info.st_size) != 0)
            return errno_error(errno, fmt::format("cannot make {} {} bytes long", to_name.native(), size));
        ByteVector buffer(k_piece);
        auto copy_piece = [&](uint64_t at, uint64_t count) -> Result<void> {
            auto const bytes = MutBytes(buffer).first(count);
            TRY(pread_all(from, bytes, at, from_name));
            TRY(pwrite_all(to, bytes, at, to_name));
            return progress(at + count);
        };
        TRY(for_each_data_piece(from, from_name, size, k_piece, copy_piece));
    }
    if (::fsync(to) != 0) return errno_error(errno, fmt::format("cannot sync {}", to_name.native()));
    return progress(size);
}

} // namespace coffer::vmm
