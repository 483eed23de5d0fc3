#include "vmm/accel/kvm/memory_slots.hpp"

#include <algorithm>

namespace coffer::vmm::kvm {

namespace {

constexpr uint64_t k_page = 4096;

size_t bitmap_words(size_t size) {
    return (size / k_page + 63) / 64;
}

} // namespace

Result<void> MemorySlots::map(MemoryRegion const& region) {
    uint64_t first = region.gpa.value();
    // SAFETY: the pointer is only looked at as a number, for its alignment.
    auto host = reinterpret_cast<uintptr_t>(region.host);
    if (region.size == 0 || (first | region.size | host) % k_page != 0 || !region.host)
        return make_error(ErrorCode::Internal, "memory region {:#x}+{:#x} is not page-aligned", first, region.size);
    if (first + region.size < first)
        return make_error(ErrorCode::Internal, "memory region {:#x}+{:#x} wraps", first, region.size);

    std::scoped_lock lock(m_mutex);
    auto next = m_slots.lower_bound(first);
    if ((next != m_slots.end() && next->first < first + region.size) ||
        (next != m_slots.begin() && std::prev(next)->first + std::prev(next)->second.region.size > first))
        return make_error(ErrorCode::Internal, "memory region {:#x}+{:#x} overlaps another", first, region.size);

    uint32_t number = 0;
    while (std::ranges::any_of(m_slots, [&](auto const& entry) { return entry.second.number == number; })) ++number;
    if (number >= m_max_slots)
        return make_error(ErrorCode::Unsupported, "the host's KVM has only {} memory slots", m_max_slots);

    Slot slot{region, number, {}};
    if (m_logging && !region.read_only) slot.host_dirty.resize(bitmap_words(region.size));
    TRY(set(slot, true));
    m_slots.emplace(first, std::move(slot));
    return {};
}

Result<void> MemorySlots::unmap(GuestPhysAddr gpa) {
    std::scoped_lock lock(m_mutex);
    auto found = m_slots.find(gpa.value());
    if (found == m_slots.end()) return make_error(ErrorCode::Internal, "no memory region begins at {:#x}", gpa.value());
    TRY(set(found->second, false));
    m_slots.erase(found);
    return {};
}

Result<void> MemorySlots::set(Slot const& slot, bool present) const {
    kvm_userspace_memory_region argument{};
    argument.slot = slot.number;
    argument.guest_phys_addr = slot.region.gpa.value();
    argument.memory_size = present ? slot.region.size : 0; // 0 deletes; nothing else may change on a live slot
    // SAFETY: the region's owner keeps the host memory alive until it is unmapped.
    argument.userspace_addr = reinterpret_cast<uintptr_t>(slot.region.host);
    if (slot.region.read_only)
        argument.flags |= KVM_MEM_READONLY;
    else if (m_logging)
        argument.flags |= KVM_MEM_LOG_DIRTY_PAGES;
    TRY_CONTEXT(m_vm.call(COFFER_KVM(KVM_SET_USER_MEMORY_REGION), &argument),
                fmt::format("cannot {} guest memory {:#x}+{:#x}", present ? "map" : "unmap", slot.region.gpa.value(),
                            slot.region.size));
    return {};
}

MemorySlots::Slot const* MemorySlots::find(GuestPhysAddr address) const {
    auto after = m_slots.upper_bound(address.value());
    if (after == m_slots.begin()) return nullptr;
    auto const& slot = std::prev(after)->second;
    return address.value() - slot.region.gpa.value() < slot.region.size ? &slot : nullptr;
}

std::byte* MemorySlots::host_address(GuestPhysAddr first, size_t size, bool for_write) const {
    std::scoped_lock lock(m_mutex);
    auto const* slot = find(first);
    if (!slot || (for_write && slot->region.read_only)) return nullptr;
    uint64_t offset = first.offset_from(slot->region.gpa);
    if (size > slot->region.size - offset) return nullptr;
    return slot->region.host + offset;
}

void MemorySlots::mark_dirty(GuestPhysAddr first, size_t size) noexcept {
    if (!m_logging) return;
    std::scoped_lock lock(m_mutex);
    while (size > 0) {
        auto const* slot = find(first);
        if (!slot) return;
        uint64_t offset = first.offset_from(slot->region.gpa);
        uint64_t length = std::min<uint64_t>(size, slot->region.size - offset);
        auto& bitmap = const_cast<Slot*>(slot)->host_dirty;
        if (!bitmap.empty())
            for (uint64_t page = offset / k_page; page <= (offset + length - 1) / k_page; ++page)
                bitmap[page / 64] |= uint64_t{1} << (page % 64);
        auto next = first.checked_add(length);
        if (!next) return;
        first = *next;
        size -= length;
    }
}

Result<void> MemorySlots::set_logging(bool on) {
    std::scoped_lock lock(m_mutex);
    if (on == m_logging) return {};
    m_logging = on;
    for (auto& [first, slot] : m_slots) {
        if (slot.region.read_only) continue;
        slot.host_dirty.assign(on ? bitmap_words(slot.region.size) : 0, 0);
        TRY(set(slot, true));
    }
    return {};
}

Result<std::vector<uint64_t>> MemorySlots::harvest(GuestPhysAddr gpa) {
    std::scoped_lock lock(m_mutex);
    auto found = m_slots.find(gpa.value());
    if (found == m_slots.end() || found->second.host_dirty.empty())
        return make_error(ErrorCode::Internal, "no dirty log is kept at {:#x}", gpa.value());
    auto& slot = found->second;
    std::vector<uint64_t> bitmap(bitmap_words(slot.region.size));
    kvm_dirty_log get{};
    get.slot = slot.number;
    get.dirty_bitmap = bitmap.data();
    TRY(m_vm.call(COFFER_KVM(KVM_GET_DIRTY_LOG), &get));
    // Without manual protection KVM_GET_DIRTY_LOG has cleared the log itself.
    if (m_manual_protect) {
        kvm_clear_dirty_log clear{};
        clear.slot = slot.number;
        clear.first_page = 0;
        uint64_t pages = slot.region.size / k_page;
        clear.num_pages = static_cast<uint32_t>(pages); // a multiple of 64, or exactly to the end of the slot
        clear.dirty_bitmap = bitmap.data();
        TRY(m_vm.call(COFFER_KVM(KVM_CLEAR_DIRTY_LOG), &clear));
    }
    for (size_t word = 0; word < bitmap.size(); ++word) bitmap[word] |= slot.host_dirty[word];
    std::ranges::fill(slot.host_dirty, 0);
    return bitmap;
}

} // namespace coffer::vmm::kvm
