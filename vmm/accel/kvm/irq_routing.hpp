// Interrupts into KVM's own controllers, and the eventfds that raise them or take doorbells without an exit to us
// (api.rst 4.25, 4.52, 4.59, 4.70, 4.75).
#pragma once

#include <map>
#include <mutex>

#include "devices/core/irq.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"

namespace coffer::vmm::kvm {

// Thread-safe.
class IrqRouting final : public devices::IrqSink, public devices::MsiSink, public EventChannels {
public:
    explicit IrqRouting(Handle const& vm, unsigned max_routes) : m_vm(vm), m_max_routes(max_routes) {}

    // GSI 0-15 to the PICs, 0-23 to the IOAPIC. After KVM_CREATE_IRQCHIP.
    Result<void> install();

    void set_line(unsigned gsi, bool asserted) noexcept override;
    void signal_msi(uint64_t address, uint32_t data) noexcept override;

    Result<void> attach_doorbell(Doorbell const& doorbell, int eventfd) override;
    Result<void> detach_doorbell(Doorbell const& doorbell, int eventfd) override;
    Result<unsigned> add_msi_route(uint64_t address, uint32_t data) override;
    Result<void> update_msi_route(unsigned gsi, uint64_t address, uint32_t data) override;
    Result<void> remove_msi_route(unsigned gsi) override;
    Result<void> attach_interrupt(unsigned gsi, int eventfd, int resample_eventfd) override;
    Result<void> detach_interrupt(unsigned gsi, int eventfd) override;

private:
    struct Message {
        uint64_t address;
        uint32_t data;
    };
    Result<void> commit();
    Result<void> set_doorbell(Doorbell const& doorbell, int eventfd, bool attach) const;

    Handle const& m_vm;
    unsigned m_max_routes;
    std::mutex m_mutex;
    std::map<unsigned, Message> m_messages; // by GSI
};

} // namespace coffer::vmm::kvm
