#include "vmm/accel/soft/translate/guest_memory_map.hpp"

#include "vmm/accel/soft/translate/code_cache.hpp"

namespace coffer::vmm::soft {

Result<std::unique_ptr<GuestMemoryMap>> GuestMemoryMap::create() {
    GuardedMemory counts = TRY(GuardedMemory::create(k_count_slots * sizeof(uint16_t)));
    return std::unique_ptr<GuestMemoryMap>(new GuestMemoryMap(std::move(counts)));
}

Result<void> GuestMemoryMap::map(MemoryRegion const& region) {
    uint64_t gpa = region.gpa.value();
    if (region.size == 0 || (gpa | region.size) % k_page_size != 0 || gpa + region.size < gpa || !region.host)
        return make_error(ErrorCode::InvalidArgument, "memory region {:#x} of {:#x} bytes is not made of pages", gpa,
                          region.size);
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

void GuestMemoryMap::count_code(uint64_t gpa_page, int delta) noexcept {
    __atomic_fetch_add(count_slot(gpa_page), static_cast<uint16_t>(delta), __ATOMIC_SEQ_CST);
}

void GuestMemoryMap::code_written(uint64_t gpa, size_t size) noexcept {
    if (m_cache) m_cache->code_written(gpa, size);
}

} // namespace coffer::vmm::soft
