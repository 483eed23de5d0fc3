// Guest-physical memory as the software CPU sees it: which host memory lies behind a page, and how many translated
// blocks were made from it.
//
// Threads: host_page() is for the vCPU's thread. map() and unmap() come from it, or from another while the vCPU is
// stopped; from another while it runs they take effect at its next poll, and the host memory must stay until then.
// has_code() and all about the log of stores may be called by any thread.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <vector>

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

    // All but code_written() are called with the guest's FPU state in the host's registers: general registers only.
    std::byte* host_page(uint64_t gpa_page, bool& writable) const noexcept override;
    bool has_code(uint64_t gpa_page) const noexcept override;
    void note_store(uint64_t gpa_page) noexcept override;
    bool store_noted(uint64_t gpa_page) const noexcept override;
    void code_written(uint64_t gpa, size_t size) noexcept override;

    // The log of stores. Unsupported where memory lies above what it can tell of (1 TiB).
    Result<void> start_log();
    void stop_log() noexcept;
    // By a device, after it stored.
    void note_device_stores(uint64_t gpa, size_t size) noexcept;
    // The notes about the region mapped at `gpa`, a bit a page, which are gone then. What the vCPU stores is in memory,
    // and in the notes of the next time, once it has dropped its write tags after this.
    Result<std::vector<uint64_t>> take_stores(GuestPhysAddr gpa);

    // By the code cache: `delta` more blocks made from the page.
    void count_code(uint64_t gpa_page, int delta) noexcept;
    void set_cache(CodeCache* cache) noexcept { m_cache = cache; }

private:
    GuestMemoryMap(GuardedMemory counts, GuardedMemory stores)
        : m_counts(std::move(counts)), m_stores(std::move(stores)) {}

    struct Region {
        uint64_t gpa;
        uint64_t size; // 0: the slot is free
        std::byte* host;
        bool writable;
    };
    static constexpr size_t k_regions = 64;
    static constexpr size_t k_count_slots = size_t{1} << 22; // pages 16 GiB apart share one: more are found, never less

    static constexpr uint64_t k_log_pages = uint64_t{1} << 28;

    uint16_t* count_slot(uint64_t gpa_page) const noexcept;
    uint64_t* store_word(uint64_t gpa_page) const noexcept;
    std::vector<uint64_t> take_stores_of(Region const& region) noexcept;

    std::array<Region, k_regions> m_regions{};
    size_t m_region_count = 0; // slots in use, and free ones between them
    mutable size_t m_last = 0;
    GuardedMemory m_counts;
    GuardedMemory m_stores; // a bit a page; host memory only where bits were set
    bool m_logging = false; // atomic, by the built-ins
    std::mutex m_mutex;     // m_regions, against their readers on other threads than the vCPU's
    CodeCache* m_cache = nullptr;
};

} // namespace coffer::vmm::soft
