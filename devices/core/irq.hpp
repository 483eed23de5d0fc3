// Interrupt wiring between devices, interrupt controllers and vCPUs.
//
// Thread rule: called under the machine's device lock, but for the functions of CpuInterrupts marked otherwise.
#pragma once

#include <cstdint>
#include <optional>

namespace coffer::devices {

// Global system interrupts (ACPI 6.4, 5.2.13): 0-15 reach both PICs and the IOAPIC (GSI 0, the PIT, is IOAPIC pin 2, as
// the MADT says), 16-23 the IOAPIC alone. `asserted` is the logical level, whatever the polarity. Implemented by the
// machine over our PIC and IOAPIC, or over KVM's.
class IrqSink {
public:
    virtual ~IrqSink() = default;
    virtual void set_line(unsigned gsi, bool asserted) noexcept = 0;
};

// One input line as a device sees it: a sink and a number. Edge devices pulse it.
class IrqLine {
public:
    IrqLine() = default;
    IrqLine(IrqSink& sink, unsigned gsi) : m_sink(&sink), m_gsi(gsi) {}
    void set(bool asserted) noexcept {
        if (m_sink) m_sink->set_line(m_gsi, asserted);
    }
    void pulse() noexcept {
        set(true);
        set(false);
    }

private:
    IrqSink* m_sink = nullptr;  // null: not connected
    unsigned m_gsi = 0;
};

// Message-signalled interrupts: an address in 0xFEE00000-0xFEEFFFFF and 32 bits of data (Intel SDM vol. 3, 11.11).
class MsiSink {
public:
    virtual ~MsiSink() = default;
    virtual void signal_msi(uint64_t address, uint32_t data) noexcept = 0;
};

// What an emulated local APIC and the PIC tell a vCPU of the software backend. All functions may be called from any
// thread, with or without the device lock held and under the interrupt controllers' own lock; none blocks, none calls
// back into CpuInterrupts (but has_pending()), and what they lock is never held around a call of CpuInterrupts.
class CpuSignals {
public:
    virtual ~CpuSignals() = default;
    // CpuInterrupts::has_pending() may have become true: leave HLT and look.
    virtual void interrupt_raised() noexcept = 0;
    virtual void nmi() noexcept = 0;
    virtual void init() noexcept = 0;
    virtual void startup(uint8_t vector) noexcept = 0;
};

// What a vCPU of the software backend asks its local APIC (with the 8259 behind LINT0). Called by the vCPU's thread
// WITHOUT the device lock; the implementation takes what lock it needs, and has_pending() is lock-free.
class CpuInterrupts {
public:
    virtual ~CpuInterrupts() = default;
    // Whether an interrupt above the task priority waits for this CPU.
    virtual bool has_pending() const noexcept = 0;
    // Takes the highest one (INTA cycle); nothing where it was withdrawn (the CPU then takes no interrupt).
    virtual std::optional<uint8_t> acknowledge() noexcept = 0;
    // CR8: bits 7:4 of the task priority register.
    virtual uint8_t read_cr8() const noexcept = 0;
    virtual void write_cr8(uint8_t value) noexcept = 0;
    // IA32_APIC_BASE (0x1B); a write of reserved bits returns false (#GP).
    virtual uint64_t read_apic_base() const noexcept = 0;
    virtual bool write_apic_base(uint64_t value) noexcept = 0;
    // IA32_TSC_DEADLINE (0x6E0), in guest TSC ticks, where CPUID offers it.
    virtual uint64_t read_tsc_deadline() const noexcept = 0;
    virtual void write_tsc_deadline(uint64_t value) noexcept = 0;
    // x2APIC registers (MSR 0x800-0x8FF); false is #GP.
    virtual bool read_x2apic(uint32_t msr, uint64_t& value) noexcept = 0;
    virtual bool write_x2apic(uint32_t msr, uint64_t value) noexcept = 0;
};

}  // namespace coffer::devices
