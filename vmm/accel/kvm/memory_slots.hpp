// Guest-physical memory as KVM slots, and their dirty logs (api.rst 4.8, 4.35, 4.117).
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"

namespace coffer::vmm::kvm {

// Thread-safe: slots may change from within an exit of any vCPU while others run; KVM makes them leave the old mapping
// before the call returns.
class MemorySlots final : public DirtyLog {
public:
    // `max_slots` is KVM_CAP_NR_MEMSLOTS; `manual_protect` says whether KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled.
    MemorySlots(Handle const& vm, unsigned max_slots, bool manual_protect)
        : m_vm(vm), m_max_slots(max_slots), m_manual_protect(manual_protect) {}

    Result<void> map(MemoryRegion const& region);
    // The region that begins at `gpa`.
    Result<void> unmap(GuestPhysAddr gpa);

    // The host memory behind a range that lies in one region, else null. Valid until that region is unmapped: used by
    // a stopped vCPU alone.
    std::byte* host_address(GuestPhysAddr first, size_t size, bool for_write) const;
    // Marks a range that the host wrote on the guest's behalf, for harvest().
    void mark_dirty(GuestPhysAddr first, size_t size) noexcept;

    // On all writable regions, present and future.
    Result<void> start() override { return set_logging(true); }
    Result<void> stop() override { return set_logging(false); }
    Result<std::vector<uint64_t>> harvest(GuestPhysAddr gpa) override;

private:
    struct Slot {
        MemoryRegion region;
        uint32_t number;
        std::vector<uint64_t> host_dirty; // empty while logging is off
    };
    Result<void> set_logging(bool on);
    Result<void> set(Slot const& slot, bool present) const;
    Slot const* find(GuestPhysAddr address) const;

    Handle const& m_vm;
    unsigned m_max_slots;
    bool m_manual_protect;
    std::atomic<bool> m_logging = false;
    std::map<uint64_t, Slot> m_slots; // by first address
    mutable std::mutex m_mutex;
};

} // namespace coffer::vmm::kvm
