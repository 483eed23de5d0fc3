// A VM of /dev/kvm with in-kernel interrupt controllers.
#pragma once

#include <atomic>
#include <vector>

#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/kvm/irq_routing.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"
#include "vmm/accel/kvm/memory_slots.hpp"
#include "vmm/accel/kvm/state.hpp"

namespace coffer::vmm::kvm {

class KvmPartition final : public Partition {
public:
    static Result<std::unique_ptr<KvmPartition>> create(PartitionConfig const& config);

    AcceleratorCapabilities const& capabilities() const noexcept override { return m_capabilities; }
    Result<void> map(MemoryRegion const& region) override { return m_memory->map(region); }
    Result<void> unmap(GuestPhysAddr gpa) override { return m_memory->unmap(gpa); }
    void memory_written(GuestPhysAddr first, size_t size) noexcept override { m_memory->mark_dirty(first, size); }
    // Once for each index below the configured number.
    Result<std::unique_ptr<Vcpu>> create_vcpu(unsigned index, GuestIo& io, devices::CpuInterrupts*) override;
    devices::CpuSignals* signals(unsigned) noexcept override { return nullptr; }
    devices::IrqSink* irq_sink() noexcept override { return m_interrupts.get(); }
    devices::MsiSink* msi_sink() noexcept override { return m_interrupts.get(); }
    Result<void> set_hpet_legacy_routing(bool on) override;
    EventChannels* event_channels() noexcept override { return m_interrupts.get(); }
    DirtyLog* dirty_log() noexcept override { return m_memory.get(); }
    Result<void> reset() override;
    Result<ByteVector> save() override;
    Result<void> restore(Bytes state, int64_t step) override;
    uint64_t tsc_hz() const noexcept override { return uint64_t{m_tsc_khz} * 1000; }
    uint64_t guest_tsc() const noexcept override;
    CpuidRegisters guest_cpuid(uint32_t leaf, uint32_t subleaf) const noexcept override;
    unsigned physical_address_bits() const noexcept override { return m_physical_address_bits; }

private:
    KvmPartition(System system, Handle vm, PartitionConfig const& config)
        : m_system(std::move(system)), m_vm(std::move(vm)), m_config(config) {}
    Result<void> set_up();
    Result<void> create_interrupt_controllers();
    Result<void> enable_capabilities();
    Result<void> create_vcpus();
    Result<void> set_up_vcpu(Handle const& vcpu, std::vector<kvm_cpuid_entry2> const& cpuid);

    struct InterruptControllers {
        std::array<kvm_irqchip, 3> chips;
        kvm_pit_state2 pit;
    };
    Result<InterruptControllers> read_controllers() const;
    Result<void> write_controllers(InterruptControllers const& state) const;

    System m_system;
    Handle m_vm;
    PartitionConfig m_config;
    AcceleratorCapabilities m_capabilities;
    std::unique_ptr<MemorySlots> m_memory;
    std::unique_ptr<IrqRouting> m_interrupts;
    std::vector<Handle> m_vcpus;           // handed out by create_vcpu()
    std::vector<kvm_cpuid_entry2> m_cpuid; // vCPU 0's
    uint32_t m_tsc_khz = 0;
    std::atomic<int64_t> m_tsc_offset = 0; // guest TSC - host TSC
    unsigned m_physical_address_bits = 36;
    InterruptControllers m_power_on{};
};

} // namespace coffer::vmm::kvm
