// IOAPIC with 24 pins and an EOI register. Sources: see ioapic_spec.hpp. 0x1000 bytes at 0xFEC00000.
//
// Not emulated: polarity (lines carry logical levels), ExtINT pins (the 8259A reaches CPUs by LINT0), SMI.
//
// Thread rule: MMIO and Device functions take the interrupt lock themselves; the others want it held.
#pragma once

#include <array>

#include "devices/chipset/apic_bus.hpp"
#include "devices/chipset/ioapic_spec.hpp"
#include "devices/core/device.hpp"

namespace coffer::devices {

class IoApic final : public Device, public MmioDevice {
public:
    // `bus` takes the messages and outlives this.
    IoApic(InterruptLock& lock, ApicBus& bus);

    void set_line(InterruptGuard const& guard, unsigned pin, bool asserted);
    // Clears remote IRR of the level pins of `vector`, and sends again for those whose line is still asserted.
    void end_of_interrupt(InterruptGuard const& guard, uint8_t vector);

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return "ioapic"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    uint32_t read_register() const noexcept;
    void write_register(InterruptGuard const& guard, uint32_t value);
    bool send(InterruptGuard const& guard, uint64_t entry);
    // Sends for a level pin that asks and is not already in service.
    void service_level(InterruptGuard const& guard, unsigned pin);

    // Glue
    InterruptLock& m_lock;
    ApicBus& m_bus;

    // Volatile state
    uint8_t m_select = 0;
    uint32_t m_id = 0;
    uint32_t m_lines = 0;
    std::array<uint64_t, ioapic::k_pins> m_redirection;
};

} // namespace coffer::devices
