#include "vmm/accel/soft/translate/guest_memory_map.hpp"

#include "vmm/accel/soft/translate/code_cache.hpp"

namespace coffer::vmm::soft {

Result<std::unique_ptr<GuestMemoryMap>> GuestMemoryMap::create() {
    GuardedMemory counts = TRY(GuardedMemory::create(k_count_slots * sizeof(uint16_t)));
    GuardedMemory stores = TRY(GuardedMemory::create(k_log_pages / 8));
    return std::unique_ptr<GuestMemoryMap>(new GuestMemoryMap(std::move(counts), std::move(stores)));
}

Result<void> GuestMemoryMap::map(MemoryRegion const& region) {
    uint64_t gpa = region.gpa.value();
    if (region.size == 0 || (gpa | region.size) % k_page_size != 0 || gpa + region.size < gpa || !region.host)
        return make_error(ErrorCode::InvalidArgument, "memory region {:#x} of {:#x} bytes is not made of pages", gpa,
                          region.size);
    std::lock_guard lock(m_mutex);
    size_t free = k_regions;
    for (size_t i = 0; i < k_regions; ++i) {
        Region const& other = m_regions[i];
        if (other.size == 0) {
            if (free == k_regions) free = i;
        } else if (gpa < other.gpa + other.size && other.gpa < gpa + region.size) {
            return make_error(ErrorCode::AlreadyExists, "memory region {:#x} of {:#x} bytes overlaps the one at {:#x}",
                              gpa, region.size, other.gpa);
        }
    }
    if (free == k_regions) return make_error(ErrorCode::NoSpace, "more than {} memory regions", k_regions);
    m_regions[free] = Region{gpa, region.size, region.host, !region.read_only};
    m_region_count = std::max(m_region_count, free + 1);
    return {};
}

Result<size_t> GuestMemoryMap::unmap(GuestPhysAddr gpa) {
    std::lock_guard lock(m_mutex);
    for (Region& region : m_regions) {
        if (region.size == 0 || region.gpa != gpa.value()) continue;
        size_t size = region.size;
        region.size = 0;
        return size;
    }
    return make_error(ErrorCode::NotFound, "no memory region at {:#x}", gpa.value());
}

__attribute__((target("general-regs-only"))) std::byte* GuestMemoryMap::host_page(uint64_t gpa_page,
                                                                                  bool& writable) const noexcept {
    size_t i = m_last;
    for (size_t tried = 0; tried <= m_region_count; ++tried) {
        Region const& region = m_regions[i];
        if (gpa_page - region.gpa < region.size) {
            m_last = i;
            writable = region.writable;
            return region.host + (gpa_page - region.gpa);
        }
        i = i + 1 < m_region_count ? i + 1 : 0;
    }
    return nullptr;
}

__attribute__((target("general-regs-only"))) uint16_t* GuestMemoryMap::count_slot(uint64_t gpa_page) const noexcept {
    // SAFETY: the mapping holds k_count_slots zeroed 16-bit integers.
    return reinterpret_cast<uint16_t*>(m_counts.data()) + gpa_page / k_page_size % k_count_slots;
}

// The built-ins, for std::atomic is not made of general registers only.
__attribute__((target("general-regs-only"))) bool GuestMemoryMap::has_code(uint64_t gpa_page) const noexcept {
    return __atomic_load_n(count_slot(gpa_page), __ATOMIC_SEQ_CST) != 0;
}

// ---- The log of stores ----

__attribute__((target("general-regs-only"))) uint64_t* GuestMemoryMap::store_word(uint64_t gpa_page) const noexcept {
    // SAFETY: the mapping holds k_log_pages zeroed bits, by words.
    return reinterpret_cast<uint64_t*>(m_stores.data()) + gpa_page / k_page_size % k_log_pages / 64;
}

__attribute__((target("general-regs-only"))) void GuestMemoryMap::note_store(uint64_t gpa_page) noexcept {
    if (!__atomic_load_n(&m_logging, __ATOMIC_RELAXED)) return;
    uint64_t const mask = uint64_t{1} << gpa_page / k_page_size % 64;
    // By the vCPU's thread, which whoever takes the notes waits for afterwards: a plain look is enough.
    uint64_t* word = store_word(gpa_page);
    if (!(__atomic_load_n(word, __ATOMIC_RELAXED) & mask)) __atomic_fetch_or(word, mask, __ATOMIC_SEQ_CST);
}

__attribute__((target("general-regs-only"))) bool GuestMemoryMap::store_noted(uint64_t gpa_page) const noexcept {
    if (!__atomic_load_n(&m_logging, __ATOMIC_RELAXED)) return true;
    return __atomic_load_n(store_word(gpa_page), __ATOMIC_RELAXED) >> gpa_page / k_page_size % 64 & 1;
}

void GuestMemoryMap::note_device_stores(uint64_t gpa, size_t size) noexcept {
    if (size == 0 || !__atomic_load_n(&m_logging, __ATOMIC_SEQ_CST)) return;
    uint64_t const last = (gpa + size - 1) & k_page_mask;
    for (uint64_t page = gpa & k_page_mask;; page += k_page_size) {
        // Always a locked instruction: what the device stored is visible before the note.
        __atomic_fetch_or(store_word(page), uint64_t{1} << page / k_page_size % 64, __ATOMIC_SEQ_CST);
        if (page == last) return;
    }
}

Result<void> GuestMemoryMap::start_log() {
    std::lock_guard lock(m_mutex);
    for (Region const& region : m_regions)
        if (region.size != 0 && region.writable && (region.gpa + region.size - 1) / k_page_size >= k_log_pages)
            return make_error(ErrorCode::Unsupported,
                              "the software CPU keeps no log of stores to memory above {} GiB, where this VM has some",
                              k_log_pages * k_page_size >> 30);
    for (Region const& region : m_regions)
        if (region.size != 0 && region.writable) take_stores_of(region);
    __atomic_store_n(&m_logging, true, __ATOMIC_SEQ_CST);
    return {};
}

void GuestMemoryMap::stop_log() noexcept {
    __atomic_store_n(&m_logging, false, __ATOMIC_SEQ_CST);
}

std::vector<uint64_t> GuestMemoryMap::take_stores_of(Region const& region) noexcept {
    uint64_t const pages = region.size / k_page_size;
    std::vector<uint64_t> taken((pages + 63) / 64);
    uint64_t const first = region.gpa / k_page_size;
    for (uint64_t at = 0; at < pages;) {
        unsigned const shift = (first + at) % 64;
        uint64_t const count = std::min<uint64_t>(64 - shift, pages - at);
        uint64_t const mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << shift;
        uint64_t* word = store_word(region.gpa + at * k_page_size);
        if (__atomic_load_n(word, __ATOMIC_RELAXED) & mask) {
            uint64_t const bits = (__atomic_fetch_and(word, ~mask, __ATOMIC_SEQ_CST) & mask) >> shift;
            taken[at / 64] |= bits << at % 64;
            if (at % 64 + count > 64) taken[at / 64 + 1] |= bits >> (64 - at % 64);
        }
        at += count;
    }
    return taken;
}

Result<std::vector<uint64_t>> GuestMemoryMap::take_stores(GuestPhysAddr gpa) {
    std::lock_guard lock(m_mutex);
    for (Region const& region : m_regions)
        if (region.size != 0 && region.writable && region.gpa == gpa.value() &&
            __atomic_load_n(&m_logging, __ATOMIC_SEQ_CST))
            return take_stores_of(region);
    return make_error(ErrorCode::Internal, "no log of stores is kept at {:#x}", gpa.value());
}

// ---- Code ----

void GuestMemoryMap::count_code(uint64_t gpa_page, int delta) noexcept {
    __atomic_fetch_add(count_slot(gpa_page), static_cast<uint16_t>(delta), __ATOMIC_SEQ_CST);
}

void GuestMemoryMap::code_written(uint64_t gpa, size_t size) noexcept {
    if (m_cache) m_cache->code_written(gpa, size);
}

} // namespace coffer::vmm::soft
