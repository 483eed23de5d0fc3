// What every device must stand, whatever it is. Used by tests/conformance; each function reports through GoogleTest.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "devices/core/device.hpp"

namespace coffer::tests {

inline ByteVector saved(devices::Device const& device) {
    auto state = device.save();
    EXPECT_TRUE(state.has_value()) << device.unit_name() << ": " << (state ? "" : state.error().message());
    return state ? *state : ByteVector{};
}

// `change` makes a difference that save() shows; restoring takes it back, and resetting gives the state of `fresh`.
inline void expect_save_restore_reset(devices::Device& device, std::function<void()> const& change) {
    device.reset(devices::ResetKind::Cold);
    ByteVector before = saved(device);
    change();
    ByteVector changed = saved(device);
    EXPECT_NE(before, changed) << device.unit_name() << ": the change does not show in the saved state";
    device.reset(devices::ResetKind::Cold);
    EXPECT_EQ(before, saved(device)) << device.unit_name() << ": a reset leaves something behind";
    auto restored = device.restore(changed);
    ASSERT_TRUE(restored.has_value()) << device.unit_name() << ": " << restored.error().message();
    EXPECT_EQ(changed, saved(device)) << device.unit_name() << ": restore does not give back what was saved";
    restored = device.restore(before);
    ASSERT_TRUE(restored.has_value()) << device.unit_name() << ": " << restored.error().message();
    EXPECT_EQ(before, saved(device));
}

// Every proper prefix is refused and changes nothing.
inline void expect_truncated_state_refused(devices::Device& device) {
    ByteVector full = saved(device);
    ASSERT_FALSE(full.empty());
    for (size_t length = 0; length < full.size(); ++length) {
        auto restored = device.restore(Bytes(full).first(length));
        ASSERT_FALSE(restored.has_value())
            << device.unit_name() << " takes " << length << " of " << full.size() << " bytes";
    }
    EXPECT_EQ(full, saved(device)) << device.unit_name() << ": a refused restore changed something";
}

// Reads and writes of every size at every offset; what counts is that the device, and the process, live on, and that a
// refused read left the buffer to the caller's all ones.
inline void hammer_mmio(devices::MmioDevice& device, uint64_t length, size_t largest = 16) {
    static constexpr uint8_t k_values[] = {0x00, 0xFF, 0x01, 0x80, 0x5A};
    for (uint64_t offset = 0; offset < length; ++offset) {
        for (size_t size = 1; size <= largest && size <= length - offset; ++size) {
            ByteVector buffer(size);
            (void)device.mmio_read(offset, buffer);
            std::fill(buffer.begin(), buffer.end(), std::byte{k_values[(offset + size) % std::size(k_values)]});
            (void)device.mmio_write(offset, buffer);
        }
    }
}

inline void hammer_pio(devices::PioDevice& device, uint16_t length) {
    static constexpr uint8_t k_values[] = {0x00, 0xFF, 0x01, 0x80, 0x5A};
    for (uint16_t offset = 0; offset < length; ++offset) {
        for (size_t size = 1; size <= 8 && size <= size_t{length} - offset; ++size) {
            for (uint8_t value : k_values) {
                ByteVector buffer(size);
                (void)device.pio_read(offset, buffer);
                std::fill(buffer.begin(), buffer.end(), std::byte{value});
                (void)device.pio_write(offset, buffer);
            }
        }
    }
}

} // namespace coffer::tests
