#include "vmm/disk/tracked_file.hpp"

#include <algorithm>
#include <bit>

namespace coffer::vmm {

Result<void> DirtyBlocks::start() {
    uint64_t const blocks = (m_file_size + k_block_size - 1) / k_block_size;
    std::lock_guard lock(m_mutex);
    if (m_noting)
        return make_error(ErrorCode::Busy, "the VM's disks are being copied already: wait until that is over");
    m_blocks.assign((blocks + 63) / 64, 0);
    m_noting = true;
    return {};
}

void DirtyBlocks::stop() noexcept {
    std::lock_guard lock(m_mutex);
    m_noting = false;
    m_blocks = {};
}

void DirtyBlocks::note(uint64_t offset, uint64_t size) noexcept {
    if (size == 0) return;
    std::lock_guard lock(m_mutex);
    if (!m_noting) return;
    COFFER_ASSERT(offset < m_file_size && size <= m_file_size - offset);
    for (uint64_t block = offset / k_block_size; block <= (offset + size - 1) / k_block_size; ++block)
        m_blocks[block / 64] |= uint64_t{1} << block % 64;
}

uint64_t DirtyBlocks::bytes() const {
    std::lock_guard lock(m_mutex);
    uint64_t blocks = 0;
    for (uint64_t word : m_blocks) blocks += static_cast<uint64_t>(std::popcount(word));
    return blocks * k_block_size;
}

std::vector<FileRange> DirtyBlocks::take() {
    std::vector<uint64_t> taken;
    {
        std::lock_guard lock(m_mutex);
        taken.resize(m_blocks.size());
        taken.swap(m_blocks);
    }
    std::vector<FileRange> ranges;
    for (uint64_t word = 0; word < taken.size(); ++word)
        for (uint64_t bits = taken[word]; bits != 0; bits &= bits - 1) {
            uint64_t const offset = (word * 64 + static_cast<uint64_t>(std::countr_zero(bits))) * k_block_size;
            uint64_t const size = std::min(k_block_size, m_file_size - offset);
            if (!ranges.empty() && ranges.back().offset + ranges.back().size == offset)
                ranges.back().size += size;
            else
                ranges.push_back({offset, size});
        }
    return ranges;
}

Result<void> TrackedFile::write(uint64_t offset, Bytes from) {
    auto done = m_file->write(offset, from);
    m_dirty.note(offset, from.size());
    return done;
}

Result<void> TrackedFile::write_zeroes(uint64_t offset, uint64_t size) {
    auto done = m_file->write_zeroes(offset, size);
    m_dirty.note(offset, size);
    return done;
}

Result<void> TrackedFile::discard(uint64_t offset, uint64_t size) {
    auto done = m_file->discard(offset, size);
    m_dirty.note(offset, size);
    return done;
}

} // namespace coffer::vmm
