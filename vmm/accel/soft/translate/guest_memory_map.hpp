// Guest-physical memory as the software CPU sees it: which host memory lies behind a page, and how many translated
// blocks were made from it.
//
// Threads: host_page() is for the vCPU's thread. map() and unmap() come from it, or from another while the vCPU is
// stopped; from another while it runs they take effect at its next poll, and the host memory must stay until then.
// has_code() may be called by any thread.
#pragma once

#include <array>
#include <memory>

#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/soft/cpu.hpp"
#include "vmm/accel/soft/translate/code_memory.hpp"

namespace coffer::vmm::soft {

class CodeCache;

class GuestMemoryMap final : public PhysicalMemory {
public:
    static Result<std::unique_ptr<GuestMemoryMap>> create();

    Result<void> map(MemoryRegion const& region);
    Result<size_t> unmap(GuestPhysAddr gpa); // its size

    // Both are called with the guest's FPU state in the host's registers: general registers only.
    std::byte* host_page(uint64_t gpa_page, bool& writable) const noexcept override;
    bool has_code(uint64_t gpa_page) const noexcept override;
    void code_written(uint64_t gpa, size_t size) noexcept override;

    // By the code cache: `delta` more blocks made from the page.
    void count_code(uint64_t gpa_page, int delta) noexcept;
    void set_cache(CodeCache* cache) noexcept { m_cache = cache; }

private:
    explicit GuestMemoryMap(GuardedMemory counts) : m_counts(std::move(counts)) {}

    struct Region {
        uint64_t gpa;
        uint64_t size; // 0: the slot is free
        std::byte* host;
        bool writable;
    };
    static constexpr size_t k_regions = 64;
    static constexpr size_t k_count_slots = size_t{1} << 22; // pages 16 GiB apart share one: more are found, never less

    uint16_t* count_slot(uint64_t gpa_page) const noexcept;

    std::array<Region, k_regions> m_regions{};
    size_t m_region_count = 0; // slots in use, and free ones between them
    mutable size_t m_last = 0;
    GuardedMemory m_counts;
    CodeCache* m_cache = nullptr;
};

} // namespace coffer::vmm::soft
