// Real-time clock MC146818A with 128 bytes of CMOS memory and an extended bank of 128 more. 4 ports at 0x70, IRQ 8.
// Sources: see rtc_spec.hpp.
//
// Time is UTC: the host's, plus an offset that the guest sets by setting the clock. Not emulated: daylight saving,
// square wave output, NMI masking. Releasing the divider starts a whole second (the part starts half a one).
#pragma once

#include <functional>
#include <memory>

#include "devices/chipset/rtc_spec.hpp"
#include "devices/chipset/rtc_time.hpp"
#include "devices/core/device.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

class Rtc final : public Device, public PioDevice {
public:
    struct Config {
        uint64_t low_ram = 0;  // bytes from address 0 to below 4 GiB
        uint64_t high_ram = 0; // bytes from 4 GiB on
        unsigned cpus = 1;
        int64_t utc_offset = 0;       // seconds that the clock is ahead of the host's UTC at power-on
        std::function<int64_t()> utc; // seconds since 1970; null: the host's clock
    };
    Rtc(Config config, Scheduler& scheduler, IrqLine irq8);

    // Seconds that the guest's clock is ahead of the host's, for the machine to keep over a power cycle.
    int64_t utc_offset() const noexcept { return m_utc_offset; }
    // The VM was stopped for a while: takes the host's time again.
    void resynchronise();
    // The HPET's legacy replacement takes IRQ 8 away from the clock (Hpet's callback).
    void connect_irq8(bool connected) noexcept;

    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return "rtc"; }
    // Cold: memory as a firmware-less machine has it, time from the host. Warm: interrupts off, all else survives.
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    static bool running(rtc::Bank const& bank) noexcept;
    bool running() const noexcept { return running(m_memory); }
    rtc::Format format() const noexcept { return rtc::Format(m_memory[rtc::REGISTER_B]); }
    int64_t seconds() const noexcept;
    Nanoseconds phase() const noexcept;
    uint64_t periodic_ticks() const noexcept;
    unsigned periodic_hz() const noexcept;
    uint8_t current_flags() const noexcept;
    void fill_memory() noexcept;
    void set_time(int64_t seconds, Nanoseconds phase) noexcept;
    // The guest set the clock to what the time bytes say.
    void take_time(Nanoseconds phase);

    uint8_t read_register(uint8_t index);
    void write_register(uint8_t index, uint8_t value);
    void write_control(uint8_t index, uint8_t value);
    // Takes the flags of all that happened up to now.
    void advance();
    void update_irq() noexcept;
    void arm() noexcept;
    void on_timer();

    // Static configuration and glue
    Config m_config;
    Scheduler& m_scheduler;
    IrqLine m_irq;
    std::unique_ptr<Timer> m_timer;

    // Volatile state
    uint8_t m_index = 0;
    uint8_t m_extended_index = 0;
    rtc::Bank m_memory{}; // time bytes are live only while the clock is stopped
    rtc::Bank m_extended{};
    int64_t m_utc_offset = 0;
    int64_t m_seconds = 0; // guest's time at m_started, while the clock runs
    Nanoseconds m_started = 0;
    int64_t m_seen_second = 0; // flags are complete up to here
    uint64_t m_seen_tick = 0;
    uint8_t m_flags = 0;
    bool m_irq_connected = true;
};

} // namespace coffer::devices
