#include "vmm/machine/io_dispatch.hpp"

#include <gtest/gtest.h>

namespace coffer::vmm {
namespace {

using devices::IoStatus;

class Register final : public devices::PioDevice, public devices::MmioDevice {
public:
    IoStatus pio_read(uint16_t offset, MutBytes to) override {
        if (to.size() > max_size) return IoStatus::BadSize;
        store_le_sized(to, value >> (offset * 8));
        return IoStatus::Ok;
    }
    IoStatus pio_write(uint16_t, Bytes from) override {
        value = load_le_sized(from);
        return IoStatus::Ok;
    }
    IoStatus mmio_read(uint64_t offset, MutBytes to) override { return pio_read(static_cast<uint16_t>(offset), to); }
    IoStatus mmio_write(uint64_t offset, Bytes from) override { return pio_write(static_cast<uint16_t>(offset), from); }
    void wait_after_write() noexcept override {
        lock_was_free = lock->try_lock();
        if (lock_was_free) lock->unlock();
    }

    uint64_t value = 0;
    size_t max_size = 8;
    std::mutex* lock = nullptr;
    bool lock_was_free = false;
};

class IoDispatchTest : public testing::Test {
protected:
    std::mutex m_lock;
    devices::PioBus m_pio;
    devices::MmioBus m_mmio;
    Register m_register;
    IoDispatch m_dispatch{m_lock, m_pio, m_mmio};

    uint64_t in(uint16_t port, size_t size) {
        std::array<std::byte, 8> bytes{};
        m_dispatch.pio_read(port, MutBytes(bytes).first(size));
        return load_le_sized(Bytes(bytes).first(size));
    }
};

TEST_F(IoDispatchTest, UnclaimedReadsAreAllOnes) {
    EXPECT_EQ(in(0x80, 1), 0xFFU);
    EXPECT_EQ(in(0xFFFF, 4), 0xFFFFFFFFU);
    std::array<std::byte, 8> bytes{};
    m_dispatch.mmio_read(GuestPhysAddr{0x1000}, bytes);
    EXPECT_EQ(load_le<uint64_t>(bytes), UINT64_MAX);
}

TEST_F(IoDispatchTest, AnAccessAcrossDevicesIsSplit) {
    ASSERT_TRUE(m_pio.attach(IoPort{0x71}, 1, m_register));
    m_register.value = 0x42;
    EXPECT_EQ(in(0x70, 2), 0x42FFU);
}

TEST_F(IoDispatchTest, ARefusedReadIsAllOnes) {
    ASSERT_TRUE(m_pio.attach(IoPort{0x100}, 8, m_register));
    m_register.max_size = 1;
    EXPECT_EQ(in(0x100, 4), 0xFFFFFFFFU);
    EXPECT_EQ(in(0x100, 1), 0U);
}

TEST_F(IoDispatchTest, WaitsOutsideTheLock) {
    ASSERT_TRUE(m_mmio.attach(GuestPhysAddr{0x1000}, 8, m_register));
    m_register.lock = &m_lock;
    m_dispatch.mmio_write(GuestPhysAddr{0x1000}, as_bytes("abcd"));
    EXPECT_TRUE(m_register.lock_was_free);
}

} // namespace
} // namespace coffer::vmm
