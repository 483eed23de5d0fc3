#include "vmm/disk/disk_move.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>

#include "base/file.hpp"
#include "vmm/disk/disk_seal.hpp"
#include "vmm/home/file_copy.hpp"

namespace coffer::vmm {

DiskMove::DiskMove(HomeDisks& disks) : m_disks(disks), m_buffer(DirtyBlocks::k_block_size) {
    for (auto const& [file, reserved] : disks.home_files()) m_files.push_back({file, reserved});
}

DiskMove::~DiskMove() {
    for (auto& file : m_files)
        if (file.noting) file.now->dirty().stop();
}

std::set<std::string> DiskMove::names() const {
    std::set<std::string> names;
    for (auto const& file : m_files) names.insert(file.now->path().filename().native());
    return names;
}

Result<void> DiskMove::copy_whole(File& file, std::filesystem::path const& to, Progress const& progress) {
    auto const& from = file.now->path();
    {
        auto const source = TRY(open_file(from, O_RDONLY | O_NOFOLLOW));
        auto const target = TRY(open_file(to, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW));
        auto const size = file.now->size();
        if (file.reserved && ::fallocate(target.get(), 0, 0, static_cast<off_t>(size)) != 0 && errno != EOPNOTSUPP)
            return errno_error(errno, fmt::format("cannot allocate {} bytes for {}", size, to.native()));
        TRY(copy_file_content(source.get(), from, target.get(), to,
                              [&](uint64_t done) { return progress(done, size); }));
    }
    file.copy = TRY(devices::RawDisk::open(to, {.read_only = file.now->read_only()}));
    return {};
}

Result<void> DiskMove::copy(std::filesystem::path const& folder, Progress const& progress) {
    uint64_t total = 0;
    for (auto const& file : m_files) total += file.now->size();
    uint64_t done = 0;
    for (auto& file : m_files) {
        TRY(file.now->dirty().start());
        file.noting = true;
        TRY(copy_whole(file, folder / file.now->path().filename(),
                       [&](uint64_t of_file, uint64_t) { return progress(done + of_file, total); }));
        done += file.now->size();
    }
    return {};
}

uint64_t DiskMove::left() const {
    uint64_t bytes = 0;
    for (auto const& file : m_files) bytes += file.now->dirty().bytes();
    return bytes;
}

Result<uint64_t> DiskMove::copy_rest(Progress const& progress) {
    uint64_t const total = left();
    uint64_t done = 0;
    for (auto& file : m_files) {
        auto const ranges = file.now->dirty().take();
        for (auto const& range : ranges) {
            for (uint64_t at = range.offset; at < range.offset + range.size; at += m_buffer.size()) {
                auto const left_of_range = range.offset + range.size - at;
                MutBytes const content = MutBytes(m_buffer).first(std::min<uint64_t>(m_buffer.size(), left_of_range));
                TRY(file.now->read(at, content));
                TRY(all_zero(content) && !file.reserved ? file.copy->write_zeroes(at, content.size())
                                                        : file.copy->write(at, content));
                done += content.size();
                // Of disks that are written meanwhile there may be more by now.
                TRY(progress(std::min(done, total), total));
            }
        }
        if (!ranges.empty()) TRY(file.copy->flush());
    }
    return done;
}

Result<DiskMove::Rounds> DiskMove::copy_rounds(Progress const& progress) {
    constexpr uint64_t k_little = uint64_t{4} << 20;
    constexpr unsigned k_max_rounds = 20;
    Rounds rounds;
    for (uint64_t before = left(); before > k_little && rounds.count < k_max_rounds;) {
        ++rounds.count;
        rounds.bytes += TRY(copy_rest(progress));
        uint64_t const now = left();
        // The guest writes about as fast as is copied.
        if (now > before / 4 * 3) break;
        before = now;
    }
    return rounds;
}

void DiskMove::go_over(std::filesystem::path const& folder) {
    for (auto& file : m_files) {
        file.now->dirty().stop();
        auto path = folder / file.now->path().filename();
        file.copy->rename(path);
        file.now->exchange(std::move(file.copy), std::move(path));
    }
    m_files.clear();
    m_disks.home_moved();
}

} // namespace coffer::vmm
