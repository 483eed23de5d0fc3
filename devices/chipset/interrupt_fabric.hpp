// The interrupt controllers of the software backend, wired together: two 8259A, an IOAPIC, and a local APIC a CPU.
//
// GSIs 0-15 reach the 8259A input of their number, and the IOAPIC pin of their number but for GSI 0 (the PIT), which is
// pin 2; GSI 2 does not exist; 16-23 reach the IOAPIC alone (devices/core/irq.hpp). INTR goes to LINT0 of every CPU.
//
// Thread rule: IrqSink and MsiSink may be called from any thread (they take the interrupt lock). See interrupt_lock.hpp
// for the lock's order.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "devices/chipset/ioapic.hpp"
#include "devices/chipset/local_apic.hpp"
#include "devices/chipset/pic.hpp"

namespace coffer::devices {

class InterruptFabric final : public IrqSink, public MsiSink, private ApicBus {
public:
    // 1 to 255 CPUs. `tsc` times the TSC-deadline mode.
    InterruptFabric(unsigned cpus, Scheduler& scheduler, TscClock const& tsc);

    Pic& pic() noexcept { return m_pic; }
    IoApic& ioapic() noexcept { return m_ioapic; }
    LocalApic& local_apic(unsigned cpu) noexcept { return *m_local_apics.at(cpu); }
    unsigned cpus() const noexcept { return static_cast<unsigned>(m_local_apics.size()); }
    // The same objects, for reset, save and restore: controllers first.
    std::vector<Device*> units();

    void set_line(unsigned gsi, bool asserted) noexcept override;
    void signal_msi(uint64_t address, uint32_t data) noexcept override;

private:
    bool send(InterruptGuard const& guard, ApicMessage const& message) override;
    bool send_to_all(InterruptGuard const& guard, ApicMessage const& message, unsigned except_cpu) override;
    void end_of_interrupt(InterruptGuard const& guard, uint8_t vector) override;
    uint8_t acknowledge_pic(InterruptGuard const& guard) override;

    InterruptLock m_lock;
    Pic m_pic;
    IoApic m_ioapic;
    std::vector<std::unique_ptr<LocalApic>> m_local_apics;
};

// The local APIC page at 0xFEE00000, where each CPU sees its own: `current_cpu` names the CPU whose access it is.
class LocalApicWindow final : public MmioDevice {
public:
    LocalApicWindow(InterruptFabric& fabric, std::function<unsigned()> current_cpu)
        : m_fabric(fabric), m_current_cpu(std::move(current_cpu)) {}
    IoStatus mmio_read(uint64_t offset, MutBytes to) override {
        return m_fabric.local_apic(m_current_cpu()).mmio_read(offset, to);
    }
    IoStatus mmio_write(uint64_t offset, Bytes from) override {
        return m_fabric.local_apic(m_current_cpu()).mmio_write(offset, from);
    }

private:
    InterruptFabric& m_fabric;
    std::function<unsigned()> m_current_cpu;
};

} // namespace coffer::devices
