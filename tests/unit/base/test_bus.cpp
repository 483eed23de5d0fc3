#include "devices/core/bus.hpp"

#include <gtest/gtest.h>

namespace coffer::devices {
namespace {

class Null final : public MmioDevice {
    IoStatus mmio_read(uint64_t, MutBytes) override { return IoStatus::Ok; }
    IoStatus mmio_write(uint64_t, Bytes) override { return IoStatus::Ok; }
};

TEST(Bus, RefusesEmptyWrappingAndOverlapping) {
    MmioBus bus;
    Null device;
    EXPECT_FALSE(bus.attach(GuestPhysAddr{0x1000}, 0, device));
    EXPECT_FALSE(bus.attach(GuestPhysAddr{UINT64_MAX}, 2, device));
    ASSERT_TRUE(bus.attach(GuestPhysAddr{0x1000}, 0x1000, device));
    EXPECT_FALSE(bus.attach(GuestPhysAddr{0x1FFF}, 1, device));
    EXPECT_FALSE(bus.attach(GuestPhysAddr{0x800}, 0x801, device));
    EXPECT_TRUE(bus.attach(GuestPhysAddr{0x2000}, 1, device));
    EXPECT_TRUE(bus.attach(GuestPhysAddr{UINT64_MAX}, 1, device));
}

TEST(Bus, TheWholeAccessMustFit) {
    MmioBus bus;
    Null device;
    ASSERT_TRUE(bus.attach(GuestPhysAddr{0x1000}, 0x10, device));
    EXPECT_TRUE(bus.find(GuestPhysAddr{0x100C}, 4));
    EXPECT_FALSE(bus.find(GuestPhysAddr{0x100D}, 4));
    EXPECT_FALSE(bus.find(GuestPhysAddr{0xFFF}, 4));
    EXPECT_FALSE(bus.find(GuestPhysAddr{0x1000}, 0));
    bus.detach(GuestPhysAddr{0x1000});
    EXPECT_FALSE(bus.find(GuestPhysAddr{0x1000}, 1));
}

}  // namespace
}  // namespace coffer::devices
