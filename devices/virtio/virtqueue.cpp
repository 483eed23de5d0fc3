#include "devices/virtio/virtqueue.hpp"

#include <algorithm>
#include <atomic>

namespace coffer::devices {

using namespace virtio;

uint64_t VirtQueue::Chain::total(std::vector<Piece> const& pieces) noexcept {
    uint64_t sum = 0;
    for (auto const& piece : pieces) sum += piece.length;
    return sum;
}

VirtQueue::VirtQueue(GuestMemory& memory, uint16_t max_size)
    : m_memory(memory), m_max_size(max_size), m_size(max_size) {
    COFFER_ASSERT(is_power_of_two(max_size) && max_size <= 32768);
}

void VirtQueue::reset() noexcept {
    m_size = m_max_size;
    m_enabled = false;
    descriptors = driver_area = device_area = 0;
    vector = k_no_vector;
    m_next_avail = m_next_used = 0;
}

void VirtQueue::set_size(uint16_t size) noexcept {
    if (is_power_of_two(size) && size <= m_max_size) m_size = size;
}

VirtQueue::Next VirtQueue::next(Chain& chain) {
    uint16_t index = 0;
    if (!load(driver_area + k_ring_index, index)) return Next::Broken;
    auto waiting = static_cast<uint16_t>(index - m_next_avail);
    if (waiting == 0) return Next::Empty;
    if (waiting > m_size) return Next::Broken;
    // The entry is written before the index (2.7.13.3); read it after.
    std::atomic_thread_fence(std::memory_order_acquire);
    uint16_t head = 0;
    if (!load(driver_area + k_ring_entries + 2ULL * (m_next_avail % m_size), head)) return Next::Broken;
    chain.head = head;
    chain.readable.clear();
    chain.writable.clear();
    if (head >= m_size || !walk(head, chain)) return Next::Broken;
    ++m_next_avail;
    return Next::Chain;
}

bool VirtQueue::walk(uint16_t head, Chain& chain) const {
    return walk_table(descriptors, m_size, head, false, chain);
}

// 2.7.5: a chain has no more descriptors than the queue has entries, in an indirect table too; readable ones come
// first; an indirect descriptor is alone, and its table holds none (2.7.5.3.1).
bool VirtQueue::walk_table(uint64_t table, uint32_t entries, uint16_t first, bool indirect, Chain& chain) const {
    uint16_t index = first;
    for (uint32_t steps = 0; steps < entries; ++steps) {
        if (index >= entries) return false;
        Descriptor descriptor;
        if (!load(table + uint64_t{index} * sizeof descriptor, descriptor)) return false;
        if ((descriptor.flags & DESC_INDIRECT) != 0) {
            if (indirect || steps != 0 || (descriptor.flags & DESC_NEXT) != 0) return false;
            uint32_t count = descriptor.length / sizeof(Descriptor);
            if (descriptor.length % sizeof(Descriptor) != 0 || count == 0 || count > m_size) return false;
            return walk_table(descriptor.address, count, 0, true, chain);
        }
        bool writable = (descriptor.flags & DESC_WRITE) != 0;
        if (!writable && !chain.writable.empty()) return false;
        (writable ? chain.writable : chain.readable).push_back({GuestPhysAddr{descriptor.address}, descriptor.length});
        if ((descriptor.flags & DESC_NEXT) == 0) return true;
        index = descriptor.next;
    }
    return false; // longer than the table: a loop
}

bool VirtQueue::complete(uint16_t head, uint32_t written) {
    UsedElement element{head, written};
    uint64_t at = device_area + k_ring_entries + uint64_t{sizeof element} * (m_next_used % m_size);
    if (!m_memory.write(GuestPhysAddr{at}, object_bytes(element))) return false;
    ++m_next_used;
    // The element is there before the index says so (2.7.8.2).
    std::atomic_thread_fence(std::memory_order_release);
    return m_memory.write(GuestPhysAddr{device_area + k_ring_index}, object_bytes(m_next_used));
}

bool VirtQueue::wants_interrupt() const noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    uint16_t flags = 0;
    return !load(driver_area, flags) || (flags & k_avail_no_interrupt) == 0;
}

std::optional<size_t> VirtQueue::read(Chain const& chain, MutBytes to) const {
    size_t done = 0;
    for (auto const& piece : chain.readable) {
        size_t size = std::min<size_t>(piece.length, to.size() - done);
        if (!m_memory.read(piece.address, to.subspan(done, size))) return std::nullopt;
        done += size;
    }
    return done;
}

std::optional<size_t> VirtQueue::write(Chain const& chain, Bytes from) {
    size_t done = 0;
    for (auto const& piece : chain.writable) {
        size_t size = std::min<size_t>(piece.length, from.size() - done);
        if (!m_memory.write(piece.address, from.subspan(done, size))) return std::nullopt;
        done += size;
    }
    return done;
}

VirtQueueState VirtQueue::save() const {
    return {.size = m_size,
            .enabled = m_enabled,
            .vector = vector,
            .descriptors = descriptors,
            .driver = driver_area,
            .device = device_area,
            .next_avail = m_next_avail,
            .next_used = m_next_used};
}

bool VirtQueue::valid(VirtQueueState const& state, uint16_t max_size) noexcept {
    return is_power_of_two(state.size) && state.size <= max_size && state.descriptors % 16 == 0 &&
           state.driver % 2 == 0 && state.device % 4 == 0;
}

void VirtQueue::restore(VirtQueueState const& state) noexcept {
    m_size = state.size;
    m_enabled = state.enabled;
    vector = state.vector;
    descriptors = state.descriptors;
    driver_area = state.driver;
    device_area = state.device;
    m_next_avail = state.next_avail;
    m_next_used = state.next_used;
}

} // namespace coffer::devices
