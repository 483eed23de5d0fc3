#include "vmm/migrate/memory_pages.hpp"

#include <algorithm>
#include <bit>

namespace coffer::vmm {

uint64_t PageSet::count() const noexcept {
    uint64_t count = 0;
    for (uint64_t word : m_words) count += static_cast<uint64_t>(std::popcount(word));
    return count;
}

void PageSet::add_all() noexcept {
    std::ranges::fill(m_words, ~uint64_t{0});
    if (m_pages % 64 != 0) m_words.back() = (uint64_t{1} << m_pages % 64) - 1;
}

void PageSet::add_bits(std::span<uint64_t const> bits, uint64_t first, uint64_t count) noexcept {
    COFFER_ASSERT(first <= m_pages && count <= m_pages - first && bits.size() >= (count + 63) / 64);
    for (uint64_t at = 0; at < count; at += 64) {
        uint64_t word = bits[at / 64];
        if (count - at < 64) word &= (uint64_t{1} << (count - at)) - 1;
        if (word == 0) continue;
        uint64_t const to = (first + at) / 64;
        unsigned const shift = (first + at) % 64;
        m_words[to] |= word << shift;
        if (shift != 0 && word >> (64 - shift) != 0) m_words[to + 1] |= word >> (64 - shift);
    }
}

std::optional<uint64_t> PageSet::next(uint64_t from) const noexcept {
    if (from >= m_pages) return std::nullopt;
    uint64_t at = from / 64;
    uint64_t word = m_words[at] & ~uint64_t{0} << from % 64;
    while (word == 0)
        if (++at == m_words.size())
            return std::nullopt;
        else
            word = m_words[at];
    return at * 64 + static_cast<uint64_t>(std::countr_zero(word));
}

RamPages::RamPages(std::vector<MutBytes> parts) : m_parts(std::move(parts)) {
    for (MutBytes part : m_parts) {
        COFFER_ASSERT(part.size() % k_ram_page == 0);
        m_count += part.size() / k_ram_page;
    }
}

MutBytes RamPages::page(uint64_t number) const noexcept {
    COFFER_ASSERT(number < m_count);
    uint64_t at = number * k_ram_page;
    for (MutBytes part : m_parts) {
        if (at < part.size()) return part.subspan(at, k_ram_page);
        at -= part.size();
    }
    return {};
}

uint64_t RamPages::number_of(std::byte const* host) const noexcept {
    uint64_t before = 0;
    for (MutBytes part : m_parts) {
        // SAFETY: addresses as numbers, compared alone.
        uint64_t const offset = reinterpret_cast<uintptr_t>(host) - reinterpret_cast<uintptr_t>(part.data());
        if (offset < part.size()) return before + offset / k_ram_page;
        before += part.size() / k_ram_page;
    }
    abort_with("an address that is not of the guest's RAM was asked for its page");
}

Result<void> harvest_dirty(DirtyLog& log, GuestRam const& ram, RamPages const& numbers, PageSet& pages) {
    for (auto const& region : ram.regions()) {
        auto bits = TRY(log.harvest(region.gpa));
        pages.add_bits(bits, numbers.number_of(region.host), region.size / k_ram_page);
    }
    return {};
}

} // namespace coffer::vmm
