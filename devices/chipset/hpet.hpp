// High Precision Event Timers: one block of three comparators. 0x400 bytes at 0xFED00000. Source: see hpet_spec.hpp.
//
// All comparators are periodic and 64 bits wide. Not emulated: FSB (message) delivery.
#pragma once

#include <array>
#include <functional>
#include <memory>

#include "devices/chipset/hpet_spec.hpp"
#include "devices/chipset/hpet_state.hpp"
#include "devices/core/device.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

class Hpet final : public Device, public MmioDevice {
public:
    // `on_legacy` is called as legacy replacement is turned on (true) and off: it takes IRQ 0 from the PIT
    // (Pit::connect_irq0) and IRQ 8 from the RTC (Rtc::connect_irq8). Off after construction and reset.
    Hpet(Scheduler& scheduler, IrqSink& irqs, std::function<void(bool)> on_legacy);

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return "hpet"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    struct Comparator {
        uint64_t config = 0;
        uint64_t comparator = 0;
        uint64_t period = 0;
        bool armed = false;
        uint64_t due = 0;
        bool asserted = false; // of `gsi`
        unsigned gsi = 0;

        bool narrow() const noexcept { return config & hpet::k_timer_32bit; }
        bool level() const noexcept { return config & hpet::k_timer_level; }
        bool periodic() const noexcept { return config & hpet::k_timer_periodic; }
    };

    bool enabled() const noexcept { return m_config & hpet::k_conf_enable; }
    bool legacy() const noexcept { return m_config & hpet::k_conf_legacy; }
    uint64_t counter() const noexcept;
    Nanoseconds time_of(uint64_t count) const noexcept;
    unsigned route(unsigned index) const noexcept;
    uint64_t read_register(uint64_t offset) const noexcept;
    void write_register(uint64_t offset, uint64_t value, uint64_t mask);
    void write_config(uint64_t value);
    void write_comparator(unsigned index, uint64_t value, uint64_t mask);
    // The next match after a change of counter, comparator or mode.
    void schedule(unsigned index);
    void arm(unsigned index) noexcept;
    void on_timer(unsigned index);
    // Drives the line of a level-triggered comparator from its status bit.
    void update_line(unsigned index) noexcept;

    // Glue
    Scheduler& m_scheduler;
    IrqSink& m_irqs;
    std::function<void(bool)> m_on_legacy;
    std::array<std::unique_ptr<Timer>, hpet::k_timers> m_timers;

    // Volatile state
    uint64_t m_config = 0;
    uint64_t m_status = 0;
    uint64_t m_counter = 0; // at m_started, or while halted
    Nanoseconds m_started = 0;
    std::array<Comparator, hpet::k_timers> m_comparators;
};

} // namespace coffer::devices
