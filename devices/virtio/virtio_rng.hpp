// A virtio entropy device (VIRTIO 1.2, 5.4) fed by the host's getrandom(2), at a bounded rate: a guest that asks for
// more waits, as it would for a slow source.
#pragma once

#include <memory>
#include <string>

#include "devices/virtio/virtio_pci.hpp"

namespace coffer::devices {

class VirtioRng final : public VirtioPci {
public:
    // Bytes a second, and how many can be saved up.
    static constexpr uint64_t k_rate = 64 * 1024;
    static constexpr uint64_t k_burst = 16 * 1024;

    VirtioRng(std::string unit, GuestMemory& memory, Scheduler& scheduler);

    std::string_view unit_name() const noexcept override { return m_unit; }
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    void driver_reset() noexcept override;
    void queue_notified(unsigned index) override;
    void read_device_config(uint64_t, MutBytes) const override {}
    void refill() noexcept;

    std::string m_unit;
    std::unique_ptr<Timer> m_timer;
    uint64_t m_budget = k_burst;
    Nanoseconds m_refilled = 0;
};

} // namespace coffer::devices
