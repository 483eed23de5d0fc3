// A split virtqueue as the device side sees it (VIRTIO 1.2, 2.7). Rings and descriptors are hostile input: every walk
// is bounded by the queue's size, indirect tables included, and whatever breaks the rules breaks the queue.
//
// Thread rule: under the device lock.
#pragma once

#include <vector>

#include "base/tagged.hpp"
#include "devices/core/guest_memory.hpp"
#include "devices/virtio/virtio_spec.hpp"

namespace coffer::devices {

struct VirtQueueState {
    uint16_t size = 0;
    bool enabled = false;
    uint16_t vector = virtio::k_no_vector;
    uint64_t descriptors = 0;
    uint64_t driver = 0;
    uint64_t device = 0;
    uint16_t next_avail = 0;
    uint16_t next_used = 0;

    template <class V>
    void fields(V& v) {
        v.required(1, size);
        v.required(2, enabled);
        v.required(3, vector);
        v.required(4, descriptors);
        v.required(5, driver);
        v.required(6, device);
        v.required(7, next_avail);
        v.required(8, next_used);
    }
};

class VirtQueue {
public:
    struct Piece {
        GuestPhysAddr address;
        uint32_t length = 0;
    };
    // One request: what the device may read, then what it may write.
    struct Chain {
        uint16_t head = 0;
        std::vector<Piece> readable;
        std::vector<Piece> writable;
        uint64_t readable_bytes() const noexcept { return total(readable); }
        uint64_t writable_bytes() const noexcept { return total(writable); }

    private:
        static uint64_t total(std::vector<Piece> const& pieces) noexcept;
    };
    enum class Next : uint8_t { Chain, Empty, Broken };

    // `max_size` is a power of two, at most 32768.
    VirtQueue(GuestMemory& memory, uint16_t max_size);

    void reset() noexcept;

    // The driver's settings. set_size() takes powers of two up to the largest, and ignores others.
    uint16_t size() const noexcept { return m_size; }
    void set_size(uint16_t size) noexcept;
    bool enabled() const noexcept { return m_enabled; }
    void enable() noexcept { m_enabled = true; }
    uint64_t descriptors = 0;
    uint64_t driver_area = 0;
    uint64_t device_area = 0;
    uint16_t vector = virtio::k_no_vector;

    // Takes the next request. Broken: the driver broke a rule, or a ring is not in RAM; the device needs a reset.
    Next next(Chain& chain);
    // Puts the last request taken back, to be taken again.
    void put_back() noexcept { --m_next_avail; }
    // Gives a request back, `written` bytes of its writable part filled. False: the used ring is not in RAM.
    bool complete(uint16_t head, uint32_t written);
    // Whether the driver wants an interrupt for what was completed (2.7.7).
    bool wants_interrupt() const noexcept;

    // Copies between a buffer and a request's pieces, as far as both go; nothing where a piece is not in RAM.
    std::optional<size_t> read(Chain const& chain, MutBytes to) const;
    std::optional<size_t> write(Chain const& chain, Bytes from);

    VirtQueueState save() const;
    static bool valid(VirtQueueState const& state, uint16_t max_size) noexcept;
    void restore(VirtQueueState const& state) noexcept;
    uint16_t max_size() const noexcept { return m_max_size; }

private:
    bool walk(uint16_t head, Chain& chain) const;
    bool walk_table(uint64_t table, uint32_t entries, uint16_t first, bool indirect, Chain& chain) const;
    template <class T>
    bool load(uint64_t address, T& value) const noexcept {
        return m_memory.read(GuestPhysAddr{address}, std::as_writable_bytes(std::span(&value, 1)));
    }

    GuestMemory& m_memory;
    uint16_t m_max_size;
    uint16_t m_size;
    bool m_enabled = false;
    uint16_t m_next_avail = 0;
    uint16_t m_next_used = 0;
};

} // namespace coffer::devices
