// A virtio device on a PCI bus, driven as a modern driver does.
#pragma once

#include <algorithm>
#include <string>

#include <gtest/gtest.h>

#include "devices/virtio/virtio_spec.hpp"
#include "tests/support/pci_rig.hpp"

namespace coffer::tests {

class VirtioDriver {
public:
    static constexpr uint64_t k_bar = 0xC200'0000;
    static constexpr uint32_t k_msix = 0xC210'0000;
    static constexpr uint16_t k_size = 8;

    VirtioDriver(PciRig& rig, FakeMemory& memory, unsigned slot, uint64_t base)
        : m_rig(rig), m_memory(memory), m_slot(slot), m_base(base) {}

    // Finds the capabilities and places the BARs.
    void probe() {
        m_rig.config_write<uint32_t>(m_slot, 0x20, static_cast<uint32_t>(k_bar));
        m_rig.enable(m_slot);
        for (unsigned skip = 0; skip < 8; ++skip) {
            unsigned at = m_rig.find_capability(m_slot, 0x09, skip);
            if (at == 0) break;
            auto type = m_rig.config_read<uint8_t>(m_slot, at + 3);
            ASSERT_LE(type, 5);
            if (type != 5) {
                ASSERT_EQ(m_rig.config_read<uint8_t>(m_slot, at + 4), 4);
            }
            capability[type] = at;
            region[type] = k_bar + m_rig.config_read(m_slot, at + 8);
        }
        ASSERT_NE(capability[1] * capability[2] * capability[3] * capability[5], 0U);
        multiplier = m_rig.config_read(m_slot, capability[2] + 16);
    }
    template <class T>
    T common(uint64_t offset) {
        return m_rig.read<T>(region[1] + offset);
    }
    template <class T>
    void set_common(uint64_t offset, T value) {
        m_rig.write<T>(region[1] + offset, value);
    }
    uint8_t status() { return common<uint8_t>(devices::virtio::DEVICE_STATUS); }
    void set_status(uint8_t value) { set_common<uint8_t>(devices::virtio::DEVICE_STATUS, value); }
    uint64_t offered() {
        set_common<uint32_t>(devices::virtio::DEVICE_FEATURE_SELECT, 0);
        uint64_t low = common<uint32_t>(devices::virtio::DEVICE_FEATURE);
        set_common<uint32_t>(devices::virtio::DEVICE_FEATURE_SELECT, 1);
        return low | uint64_t{common<uint32_t>(devices::virtio::DEVICE_FEATURE)} << 32;
    }
    bool negotiate(uint64_t features) {
        set_status(0);
        set_status(1);
        set_status(3);
        set_common<uint32_t>(devices::virtio::DRIVER_FEATURE_SELECT, 0);
        set_common<uint32_t>(devices::virtio::DRIVER_FEATURE, static_cast<uint32_t>(features));
        set_common<uint32_t>(devices::virtio::DRIVER_FEATURE_SELECT, 1);
        set_common<uint32_t>(devices::virtio::DRIVER_FEATURE, static_cast<uint32_t>(features >> 32));
        set_status(11);
        return (status() & 8) != 0;
    }
    // Queue `n` takes 16 KiB from base + n * 0x8000: descriptors, driver area, device area.
    uint64_t descriptors(unsigned n) const { return m_base + n * 0x8000; }
    uint64_t available(unsigned n) const { return descriptors(n) + 0x1000; }
    uint64_t used(unsigned n) const { return descriptors(n) + 0x2000; }
    uint64_t buffers(unsigned n) const { return descriptors(n) + 0x4000; }
    void set_up_queue(unsigned n, uint16_t vector = 0xFFFF) {
        std::ranges::fill(m_memory.ram().subspan(descriptors(n), 0x4000), std::byte{0});
        avail_index[n] = used_index[n] = 0;
        set_common<uint16_t>(devices::virtio::QUEUE_SELECT, static_cast<uint16_t>(n));
        set_common<uint16_t>(devices::virtio::QUEUE_SIZE, k_size);
        set_common<uint16_t>(devices::virtio::QUEUE_MSIX_VECTOR, vector);
        set_common<uint64_t>(devices::virtio::QUEUE_DESC, descriptors(n));
        set_common<uint32_t>(devices::virtio::QUEUE_DRIVER, static_cast<uint32_t>(available(n)));
        set_common<uint32_t>(devices::virtio::QUEUE_DRIVER + 4, 0);
        set_common<uint64_t>(devices::virtio::QUEUE_DEVICE, used(n));
        set_common<uint16_t>(devices::virtio::QUEUE_ENABLE, 1);
    }
    void start(uint64_t features, unsigned queues, bool msix = false) {
        ASSERT_TRUE(negotiate(features));
        for (unsigned n = 0; n < queues; ++n) set_up_queue(n, msix ? static_cast<uint16_t>(n + 1) : uint16_t{0xFFFF});
        set_status(15);
        ASSERT_EQ(status(), 15);
    }
    void describe(uint64_t table, uint16_t index, devices::virtio::Descriptor descriptor) {
        ASSERT_TRUE(m_memory.write(GuestPhysAddr{table + 16ULL * index}, object_bytes(descriptor)));
    }
    void offer(unsigned n, uint16_t head) {
        ASSERT_TRUE(
            m_memory.write(GuestPhysAddr{available(n) + 4 + 2ULL * (avail_index[n] % k_size)}, object_bytes(head)));
        ++avail_index[n];
        ASSERT_TRUE(m_memory.write(GuestPhysAddr{available(n) + 2}, object_bytes(avail_index[n])));
    }
    void notify(unsigned n) { m_rig.write<uint16_t>(region[2] + uint64_t{n} * multiplier, static_cast<uint16_t>(n)); }
    // One buffer of `size` bytes (at most 512) for the device to write.
    void offer_input(unsigned n, uint16_t index, uint32_t size) {
        describe(descriptors(n), index, {buffers(n) + 512ULL * index, size, devices::virtio::DESC_WRITE, 0});
        offer(n, index);
    }
    void send(unsigned n, uint16_t index, Bytes content) {
        ASSERT_TRUE(m_memory.write(GuestPhysAddr{buffers(n) + 512ULL * index}, content));
        describe(descriptors(n), index, {buffers(n) + 512ULL * index, static_cast<uint32_t>(content.size()), 0, 0});
        offer(n, index);
        notify(n);
    }
    // The next used element, if there is one.
    std::optional<devices::virtio::UsedElement> next_used(unsigned n) {
        uint16_t index = 0;
        EXPECT_TRUE(m_memory.read(GuestPhysAddr{used(n) + 2}, std::as_writable_bytes(std::span(&index, 1))));
        if (index == used_index[n]) return std::nullopt;
        devices::virtio::UsedElement element{};
        EXPECT_TRUE(m_memory.read(GuestPhysAddr{used(n) + 4 + 8ULL * (used_index[n] % k_size)},
                                  std::as_writable_bytes(std::span(&element, 1))));
        ++used_index[n];
        return element;
    }
    std::string input_text(unsigned n, devices::virtio::UsedElement element) {
        std::string text(element.length, '\0');
        EXPECT_TRUE(m_memory.read(GuestPhysAddr{buffers(n) + 512ULL * element.id},
                                  std::as_writable_bytes(std::span(text.data(), text.size()))));
        return text;
    }

    std::array<unsigned, 6> capability{};
    std::array<uint64_t, 6> region{};
    uint32_t multiplier = 0;
    std::array<uint16_t, 8> avail_index{};
    std::array<uint16_t, 8> used_index{};

private:
    PciRig& m_rig;
    FakeMemory& m_memory;
    unsigned m_slot;
    uint64_t m_base;
};

} // namespace coffer::tests
