// Pages of the guest's RAM by number, and sets of them.
//
// Page n is the n-th 4 KiB of GuestRam::parts() one behind the other (what lies behind the legacy video hole counts),
// as a machine image numbers its clusters of 16.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/memory/guest_ram.hpp"

namespace coffer::vmm {

constexpr size_t k_ram_page = 4096;

// Not thread-safe.
class PageSet {
public:
    explicit PageSet(uint64_t pages) : m_pages(pages), m_words((pages + 63) / 64) {}

    uint64_t pages() const noexcept { return m_pages; }
    uint64_t count() const noexcept;
    // Of a page below pages().
    bool contains(uint64_t page) const noexcept { return m_words[page / 64] >> page % 64 & 1; }
    void add(uint64_t page) noexcept { m_words[page / 64] |= uint64_t{1} << page % 64; }
    void remove(uint64_t page) noexcept { m_words[page / 64] &= ~(uint64_t{1} << page % 64); }
    void add_all() noexcept;
    // Bit i of `bits` stands for page `first` + i, of `count` pages that lie below pages().
    void add_bits(std::span<uint64_t const> bits, uint64_t first, uint64_t count) noexcept;
    // The lowest page of the set that is not below `from`.
    std::optional<uint64_t> next(uint64_t from) const noexcept;

private:
    uint64_t m_pages;
    std::vector<uint64_t> m_words;
};

// Host memory by page number. A view: the memory outlives it and does not move.
class RamPages {
public:
    explicit RamPages(std::vector<MutBytes> parts);
    explicit RamPages(GuestRam const& ram) : RamPages(ram.parts()) {}

    uint64_t count() const noexcept { return m_count; }
    MutBytes page(uint64_t number) const noexcept;
    // The number of the page that begins at `host`, which lies in one of the parts.
    uint64_t number_of(std::byte const* host) const noexcept;

private:
    std::vector<MutBytes> m_parts;
    uint64_t m_count = 0;
};

// Takes what was written since the last time (DirtyLog::harvest) of all regions of RAM into `pages`.
Result<void> harvest_dirty(DirtyLog& log, GuestRam const& ram, RamPages const& numbers, PageSet& pages);

} // namespace coffer::vmm
