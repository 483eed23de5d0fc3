// From a vCPU's exit to the device: the buses, under the device lock.
#pragma once

#include <mutex>

#include "base/log.hpp"
#include "devices/core/bus.hpp"
#include "vmm/accel/accelerator.hpp"

namespace coffer::vmm {

// Unclaimed reads give all ones and unclaimed writes vanish. A port access that no single device claims whole is split
// into bytes, as an ISA bridge does; a memory access is not.
class IoDispatch final : public GuestIo {
public:
    // The buses are changed under the lock alone.
    IoDispatch(std::mutex& device_lock, devices::PioBus& pio, devices::MmioBus& mmio)
        : m_lock(device_lock), m_pio(pio), m_mmio(mmio) {}

    void pio_read(uint16_t port, MutBytes to) noexcept override;
    void pio_write(uint16_t port, Bytes from) noexcept override;
    void mmio_read(GuestPhysAddr from, MutBytes to) noexcept override;
    void mmio_write(GuestPhysAddr to, Bytes from) noexcept override;

private:
    void read_ports(uint16_t port, MutBytes to);
    void write_ports(uint16_t port, Bytes from);

    std::mutex& m_lock;
    devices::PioBus& m_pio;
    devices::MmioBus& m_mmio;
    log::RateLimit m_log_limit{64};
};

} // namespace coffer::vmm
