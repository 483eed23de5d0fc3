// The modern virtio transport over PCI (VIRTIO 1.2, 4.1): common, notify, ISR and device configuration in BAR 4, MSI-X
// in BAR 1, and the configuration access capability. A device derives from it.
//
// Thread rule: under the device lock.
//
// Not emulated: legacy and transitional interfaces, packed rings, event indices, notification data, queue reset.
#pragma once

#include <memory>
#include <vector>

#include "devices/core/scheduler.hpp"
#include "devices/pci/pci_function.hpp"
#include "devices/virtio/virtio_state.hpp"
#include "devices/virtio/virtqueue.hpp"

namespace coffer::devices {

class VirtioPci : public PciFunction, public MmioDevice {
public:
    static constexpr uint64_t k_region_size = 0x4000;

    void reset(ResetKind kind) noexcept override;

    // BAR 4.
    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

protected:
    struct Setup {
        virtio::DeviceType type;
        uint32_t pci_class;
        uint64_t features;   // besides F_VERSION_1 and F_INDIRECT_DESC
        size_t config_bytes; // of device configuration
    };
    VirtioPci(Setup const& setup, std::vector<uint16_t> const& queue_sizes, GuestMemory& memory, Scheduler& scheduler);
    ~VirtioPci() override = default;

    // The driver set DRIVER_OK.
    virtual void driver_ready() {}
    // The driver reset the device (or the machine was reset). Queues are reset already.
    virtual void driver_reset() noexcept {}
    // The driver put something in the queue. Called only when queue_usable(index).
    virtual void queue_notified(unsigned index) = 0;
    // `offset` and size lie within config_bytes. Writes do nothing unless overridden.
    virtual void read_device_config(uint64_t offset, MutBytes to) const = 0;

    VirtQueue& queue(unsigned index) { return m_queues[index]; }
    bool queue_usable(unsigned index) const noexcept;
    uint64_t driver_features() const noexcept { return m_driver_features; }
    // Completes a request and interrupts as the driver asked.
    void finish(unsigned index, VirtQueue::Chain const& chain, uint32_t written);
    // The driver broke a rule: DEVICE_NEEDS_RESET, and nothing more is taken from its queues (2.1.2).
    void needs_reset(std::string_view what);
    // The next request of a queue; Empty too where the queue cannot be used, and where it broke.
    bool take(unsigned index, VirtQueue::Chain& chain);

    // Calls queue_notified(index) later, on the I/O thread: a device takes a bounded number of requests at a time, so
    // that a driver which goes on adding some does not keep the device lock.
    void notify_later(unsigned index);

    VirtioState save_virtio() const;
    Result<void> check_virtio(VirtioState const& state) const;
    // After check_virtio(). Posts queue_notified() for every queue, for when the machine runs.
    void restore_virtio(VirtioState const& state);

    Scheduler& scheduler() noexcept { return m_scheduler; }

private:
    uint64_t offered_features() const noexcept;
    void add_capabilities();
    uint16_t add_virtio_capability(virtio::CapabilityType type, uint16_t bytes, uint32_t offset, uint32_t size);
    IoStatus read_common(uint64_t offset, MutBytes to);
    IoStatus write_common(uint64_t offset, Bytes from);
    void write_status(uint8_t value);
    void reset_device() noexcept;
    void interrupt(uint16_t vector, uint8_t isr_bit) noexcept;
    void config_written(uint16_t offset, size_t size) noexcept override;
    void config_about_to_be_read(uint16_t offset, size_t size) noexcept override;
    // The access that the configuration access capability describes now, if it is a legal one.
    std::optional<std::pair<uint64_t, size_t>> window_access() const noexcept;

    Setup m_setup;
    Scheduler& m_scheduler;
    std::vector<VirtQueue> m_queues;
    uint16_t m_access_capability = 0;

    uint32_t m_device_feature_select = 0;
    uint32_t m_driver_feature_select = 0;
    uint64_t m_driver_features = 0;
    uint8_t m_status = 0;
    uint8_t m_isr = 0;
    uint16_t m_config_vector = virtio::k_no_vector;
    uint16_t m_queue_select = 0;
    std::shared_ptr<VirtioPci*> m_self; // posted tasks hold it weakly: they may outlive the device
};

} // namespace coffer::devices
