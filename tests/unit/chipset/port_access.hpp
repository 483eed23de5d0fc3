// Register accesses as a guest makes them, for tests of chipset devices.
#pragma once

#include <array>

#include <gtest/gtest.h>

#include "devices/core/device.hpp"

namespace coffer::tests {

template <class T = uint8_t>
T in(devices::PioDevice& device, unsigned offset) {
    std::array<std::byte, sizeof(T)> bytes{};
    EXPECT_EQ(device.pio_read(static_cast<uint16_t>(offset), bytes), devices::IoStatus::Ok) << "port " << offset;
    return load_le<T>(bytes);
}
template <class T = uint8_t>
void out(devices::PioDevice& device, unsigned offset, std::type_identity_t<T> value) {
    EXPECT_EQ(device.pio_write(static_cast<uint16_t>(offset), object_bytes(value)), devices::IoStatus::Ok)
        << "port " << offset;
}
template <class T = uint32_t>
T load(devices::MmioDevice& device, uint64_t offset) {
    std::array<std::byte, sizeof(T)> bytes{};
    EXPECT_EQ(device.mmio_read(offset, bytes), devices::IoStatus::Ok) << "offset " << offset;
    return load_le<T>(bytes);
}
template <class T = uint32_t>
void store(devices::MmioDevice& device, uint64_t offset, std::type_identity_t<T> value) {
    EXPECT_EQ(device.mmio_write(offset, object_bytes(value)), devices::IoStatus::Ok) << "offset " << offset;
}

} // namespace coffer::tests
