#include "devices/tpm/ppi.hpp"

#include <gtest/gtest.h>

#include "tests/unit/tpm/tpm_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

TEST(TpmPpi, KeepsItsContentOverAResetButNotOverPowerOff) {
    TpmPpi page;
    GuestBus bus;
    bus.attach(page, ppi::k_page_size);
    bus.write<uint32_t>(0x109, 23); // the unaligned fields that ACPI code and OVMF use
    bus.write<uint8_t>(0x3FF, 0x5A);
    page.reset(ResetKind::Warm);
    EXPECT_EQ(bus.read<uint32_t>(0x109), 23U);
    EXPECT_EQ(bus.read<uint8_t>(0x3FF), 0x5A);
    page.reset(ResetKind::Cold);
    EXPECT_EQ(bus.read<uint32_t>(0x109), 0U);
}

TEST(TpmPpi, MemoryOverwriteIsRequestedUntilItIsDone) {
    TpmPpi page;
    GuestBus bus;
    bus.attach(page, ppi::k_page_size);
    EXPECT_FALSE(page.memory_overwrite_requested());
    bus.write<uint8_t>(0x15A, 0x10); // DisableAutoDetect alone
    EXPECT_FALSE(page.memory_overwrite_requested());
    bus.write<uint8_t>(0x15A, 0x11);
    page.reset(ResetKind::Warm);
    EXPECT_TRUE(page.memory_overwrite_requested());
    page.memory_was_overwritten();
    EXPECT_FALSE(page.memory_overwrite_requested());
    EXPECT_EQ(bus.read<uint8_t>(0x15A), 0x10);
}

TEST(TpmPpi, OddAccessesReadAllOnes) {
    TpmPpi page;
    ByteVector three(3, std::byte{1});
    EXPECT_EQ(page.mmio_write(0, three), IoStatus::BadSize);
    EXPECT_EQ(page.mmio_read(0, three), IoStatus::BadSize);
    EXPECT_EQ(three, ByteVector(3, std::byte{0xFF}));
    ByteVector two(2, std::byte{1});
    EXPECT_EQ(page.mmio_write(0x3FF, two), IoStatus::NoSuchRegister);
    EXPECT_EQ(page.mmio_read(0x3FF, two), IoStatus::NoSuchRegister);
    EXPECT_EQ(two, ByteVector(2, std::byte{0xFF}));
}

} // namespace
} // namespace coffer::tests
