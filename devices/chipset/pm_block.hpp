// ACPI power management block of the LPC bridge. 128 ports at PMBASE, attached where the bridge says; apm_ports() at
// 0xB2 (2). SCI on its line, level. Sources: see pm_block_spec.hpp.
//
// The machine is always in ACPI mode: SCI_EN reads 1, and there is no SMM, so that SMI_EN and the APM ports only keep
// what is written. Not emulated: S1 to S4, GPE sources, TCO watchdog, sleep button, RTC wake.
#pragma once

#include <memory>

#include "devices/chipset/pm_block_spec.hpp"
#include "devices/chipset/port_face.hpp"
#include "devices/core/backends.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

enum class PmTimerWidth : uint8_t { Bits24 = 24, Bits32 = 32 };

class PmBlock final : public Device, public PioDevice {
    IoStatus apm_read(uint16_t offset, MutBytes to);
    IoStatus apm_write(uint16_t offset, Bytes from);

public:
    PmBlock(Scheduler& scheduler, IrqLine sci, MachineControl& control, PmTimerWidth width = PmTimerWidth::Bits24);

    PioDevice& apm_ports() noexcept { return m_apm_ports; }

    // The power button is pressed: an ACPI guest shuts down.
    void press_power_button();

    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return "pm"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    uint64_t timer_count() const noexcept;
    // Changes whenever the timer's top bit does.
    uint64_t overflows() const noexcept { return timer_count() >> (static_cast<unsigned>(m_width) - 1); }
    uint32_t status() const noexcept;
    uint32_t read_register(uint16_t offset) const noexcept;
    // Writes the bytes of a 32-bit register that `mask` covers.
    void write_register(uint16_t offset, uint32_t value, uint32_t mask);
    void write_control(uint32_t value);
    void update_sci() noexcept;

    // Static configuration and glue
    Scheduler& m_scheduler;
    IrqLine m_sci;
    MachineControl& m_machine;
    PmTimerWidth m_width;
    std::unique_ptr<Timer> m_timer;
    PortFace<PmBlock, &PmBlock::apm_read, &PmBlock::apm_write> m_apm_ports{*this};

    // Volatile state
    uint32_t m_status = 0;
    uint32_t m_enable = 0;
    uint32_t m_control = 0;
    uint64_t m_gpe0_enable = 0;
    uint32_t m_smi_enable = 0;
    std::array<uint8_t, pm::k_apm_ports> m_apm{};
    Nanoseconds m_timer_start = 0;
    uint64_t m_seen_overflows = 0; // TMROF is complete up to here
};

} // namespace coffer::devices
