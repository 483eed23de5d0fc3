// A CPU's local APIC, in xAPIC and x2APIC mode, with the 8259A behind LINT0. Sources: see local_apic_spec.hpp.
// xAPIC registers: 0x1000 bytes at 0xFEE00000, as seen by this CPU alone.
//
// Not emulated: relocation of the register page, EOI broadcast suppression, arbitration (APR, RRD), SMI,
// level-triggered LINT0 in fixed mode (taken as edge), thermal and performance sources. Deviation: LINT0 of the
// bootstrap CPU comes out of reset as ExtINT and unmasked, as a BIOS leaves it (MultiProcessor
// Specification 1.4, 3.6.2.2), so that 8259A interrupts work before anyone programs it.
//
// Thread rule: MMIO (device lock) and CpuInterrupts (vCPU threads) take the interrupt lock themselves; has_pending()
// takes none; functions with a guard parameter want it held.
#pragma once

#include <array>
#include <atomic>
#include <string>

#include "devices/chipset/apic_bus.hpp"
#include "devices/chipset/apic_timer.hpp"
#include "devices/chipset/local_apic_spec.hpp"
#include "devices/chipset/local_apic_state.hpp"
#include "devices/core/device.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

class LocalApic final : public Device, public MmioDevice, public CpuInterrupts {
public:
    // CPU `index` has APIC ID `index`; CPU 0 is the bootstrap processor.
    LocalApic(unsigned index, InterruptLock& lock, ApicBus& bus, Scheduler& scheduler, TscClock const& tsc);

    // Before the vCPU runs; `signals` outlives this.
    void connect(CpuSignals& signals);

    unsigned index() const noexcept { return m_index; }
    bool accepts(InterruptGuard const& guard, ApicMessage const& message) const noexcept;
    // Takes a message that accepts() said yes to (or a self IPI).
    void deliver(InterruptGuard const& guard, ApicMessage const& message);
    void set_lint0(InterruptGuard const& guard, bool asserted);
    uint8_t processor_priority(InterruptGuard const& guard) const noexcept;

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

    bool has_pending() const noexcept override { return m_pending.load(std::memory_order_acquire); }
    std::optional<uint8_t> acknowledge() noexcept override;
    uint8_t read_cr8() const noexcept override;
    void write_cr8(uint8_t value) noexcept override;
    uint64_t read_apic_base() const noexcept override;
    bool write_apic_base(uint64_t value) noexcept override;
    uint64_t read_tsc_deadline() const noexcept override;
    void write_tsc_deadline(uint64_t value) noexcept override;
    bool read_x2apic(uint32_t msr, uint64_t& value) noexcept override;
    bool write_x2apic(uint32_t msr, uint64_t value) noexcept override;

    std::string_view unit_name() const noexcept override { return m_name; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    // 256 bits, a vector each.
    class VectorSet {
    public:
        using Words = std::array<uint32_t, 8>;
        void set(uint8_t vector, bool value = true) noexcept;
        bool has(uint8_t vector) const noexcept { return words[vector / 32] >> (vector % 32) & 1; }
        int highest() const noexcept; // -1 where empty
        Words words{};
    };

    struct Registers {
        uint8_t tpr = 0;
        uint32_t ldr = 0;
        uint32_t dfr = lapic::k_dfr_flat;
        uint32_t svr = 0xFF;
        uint32_t errors = 0; // since ESR was last written
        uint32_t esr = 0;
        uint64_t icr = 0;
        uint8_t divide = 0;
        VectorSet isr;
        VectorSet tmr;
        VectorSet irr;
        std::array<uint32_t, lapic::k_lvt_count> lvt{};
    };

    bool enabled() const noexcept { return m_base & lapic::k_base_enabled; }
    bool x2apic() const noexcept { return m_base & lapic::k_base_x2apic; }
    bool software_enabled() const noexcept { return enabled() && (m_registers.svr & lapic::k_svr_enabled); }
    uint32_t logical_id() const noexcept;
    uint32_t& lvt(lapic::Register which) noexcept { return m_registers.lvt[lapic::lvt_index(which)]; }
    uint32_t lvt(lapic::Register which) const noexcept { return m_registers.lvt[lapic::lvt_index(which)]; }

    // local_apic.cpp: priorities and delivery
    uint8_t priority() const noexcept;
    bool fixed_ready() const noexcept;
    bool external_ready() const noexcept;
    void accept_vector(InterruptGuard const& guard, uint8_t vector, bool level);
    void raise_error(InterruptGuard const& guard, uint32_t error);
    void end_of_interrupt(InterruptGuard const& guard);
    void send_ipi(InterruptGuard const& guard, uint64_t icr);
    // Recomputes has_pending(); tells the CPU where it newly became true, or where something new was accepted.
    void update(InterruptGuard const& guard, bool accepted = false);
    void on_timer();
    void reset_registers() noexcept;

    // local_apic_registers.cpp: the register file, common to both modes
    std::optional<uint32_t> read_register(uint16_t offset) const noexcept;
    bool write_register(InterruptGuard const& guard, uint16_t offset, uint32_t value);
    void write_lvt(InterruptGuard const& guard, uint16_t offset, uint32_t value);
    static uint32_t reserved_bits(uint16_t offset) noexcept;

    // Static configuration and glue
    unsigned m_index;
    std::string m_name;
    InterruptLock& m_lock;
    ApicBus& m_bus;
    CpuSignals* m_signals = nullptr;

    // Volatile state
    uint64_t m_base = 0;
    Registers m_registers;
    bool m_lint0 = false;
    ApicTimer m_timer;
    std::atomic<bool> m_pending{false};
};

} // namespace coffer::devices
