#include "vmm/disk/overlay_file.hpp"

#include <algorithm>
#include <cerrno>

#include <fcntl.h>
#include <unistd.h>

#include "base/file.hpp"
#include "devices/storage/raw_disk.hpp"
#include "vmm/disk/tracked_file.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace spec = overlay_spec;

namespace {

ByteVector header_of(OverlayFile::Identity const& identity) {
    ByteVector header(spec::k_header_size);
    std::ranges::copy(std::as_bytes(std::span(spec::k_magic)), header.begin());
    store_le<uint32_t>(header, spec::k_version_at, spec::k_version);
    store_le<uint32_t>(header, spec::k_cluster_size_at, static_cast<uint32_t>(spec::k_cluster_size));
    store_le<uint64_t>(header, spec::k_content_size_at, identity.size);
    std::ranges::copy(identity.id.bytes(), header.begin() + spec::k_id_at);
    return header;
}

Result<void> write_new(int fd, std::filesystem::path const& path, OverlayFile::Identity const& identity) {
    spec::Layout const layout{identity.size};
    if (::ftruncate(fd, static_cast<off_t>(layout.file_size())) != 0)
        return errno_error(errno, fmt::format("cannot make {} of {} bytes", path.native(), layout.file_size()));
    TRY(pwrite_all(fd, header_of(identity), 0, path));
    if (::fsync(fd) != 0) return errno_error(errno, fmt::format("cannot sync {}", path.native()));
    return {};
}

} // namespace

Result<std::unique_ptr<OverlayFile>> OverlayFile::create(std::filesystem::path const& path, Identity const& identity) {
    COFFER_ASSERT(identity.size > 0 && identity.size <= spec::k_max_content);
    auto opened = [&]() -> Result<std::unique_ptr<OverlayFile>> {
        {
            auto fd = TRY(open_file(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
            TRY(write_new(fd.get(), path, identity));
        }
        return open(path, identity, false);
    }();
    if (!opened) ::unlink(path.c_str());
    return opened;
}

Result<std::unique_ptr<OverlayFile>> OverlayFile::open(std::filesystem::path const& path, Identity const& identity,
                                                       bool read_only) {
    auto file = devices::RawDisk::open(path, {.read_only = read_only});
    if (!file && file.error().code() == ErrorCode::NotFound)
        return make_error(ErrorCode::Integrity, "{} is missing, which holds a part of a disk: put it back",
                          path.native());
    if (!file && file.error().code() == ErrorCode::Corrupt) return damaged(path, "it cannot be a part of a disk");
    if (!file) return std::move(file).error();
    return open(std::make_unique<TrackedFile>(std::move(*file), path), path, identity);
}

Result<std::unique_ptr<OverlayFile>> OverlayFile::open(std::unique_ptr<devices::BlockBackend> file,
                                                       std::filesystem::path const& path, Identity const& identity) {
    std::unique_ptr<OverlayFile> overlay(new OverlayFile(std::move(file), identity));
    auto& backend = *overlay->m_file;
    if (backend.size() != overlay->m_layout.file_size())
        return damaged(path, fmt::format("it has {} bytes where {} are due: is the disk below of another size now?",
                                         backend.size(), overlay->m_layout.file_size()));
    ByteVector header(spec::k_header_size);
    TRY(backend.read(0, header));
    if (header != header_of(identity)) return damaged(path, "it is not the part of the disk that is due here");
    TRY(backend.read(spec::k_table_at, overlay->m_table));
    return overlay;
}

void OverlayFile::hold(uint64_t cluster) {
    if (holds(cluster)) return;
    m_table[cluster / 8] |= std::byte{1} << (cluster % 8);
    m_changed.insert(cluster / 8 / spec::k_table_block);
}

Result<void> OverlayFile::flush() {
    TRY(m_file->flush());
    if (m_changed.empty()) return {};
    for (uint64_t block : m_changed)
        TRY(m_file->write(spec::k_table_at + block * spec::k_table_block,
                          Bytes(m_table).subspan(block * spec::k_table_block, spec::k_table_block)));
    TRY(m_file->flush());
    m_changed.clear();
    return {};
}

} // namespace coffer::vmm
