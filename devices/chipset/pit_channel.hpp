// One counter of the 8254, as a function of time: nothing is counted, all is computed from the tick it was started at.
// Source: Intel 8254 data sheet 231164-005, "Mode definitions".
//
// Deviations: a new count starts at once (not one clock later, nor at the end of the period in modes 2 and 3).
#pragma once

#include <optional>

#include "base/result.hpp"
#include "devices/chipset/pit_state.hpp"

namespace coffer::devices {

class PitChannel {
public:
    using Tick = int64_t; // of the 1.193182 MHz input

    void write_control(pit::Access access, pit::Mode mode, bool bcd) noexcept;
    void write(uint8_t value, Tick now) noexcept;
    uint8_t read(Tick now) noexcept;
    // A second latch before the first was read is ignored.
    void latch_count(Tick now) noexcept;
    void latch_status(Tick now) noexcept;
    void set_gate(bool gate, Tick now) noexcept;

    bool output(Tick now) const noexcept;
    // The first tick after `now` at which OUT rises.
    std::optional<Tick> next_rise(Tick now) const noexcept;

    PitChannelState saved(Tick now) const;
    static Result<PitChannel> loaded(PitChannelState const& state, Tick now);

private:
    bool triggered_by_gate() const noexcept {
        return m_mode == pit::Mode::OneShot || m_mode == pit::Mode::HardwareStrobe;
    }
    bool periodic() const noexcept { return m_mode == pit::Mode::RateGenerator || m_mode == pit::Mode::SquareWave; }
    Tick elapsed(Tick now) const noexcept { return m_running ? now - m_start : m_elapsed; }
    void start(Tick now) noexcept;
    void load(uint16_t written, Tick now) noexcept;
    uint16_t count(Tick now) const noexcept;

    pit::Mode m_mode = pit::Mode::TerminalCount;
    pit::Access m_access = pit::Access::LowHigh;
    bool m_bcd = false;
    bool m_gate = true;
    bool m_loaded = false; // a count was written since the control word
    bool m_running = false;
    uint32_t m_count = 0; // 1 to 0x10000 (10000 in BCD) once loaded
    Tick m_start = 0;     // while running
    Tick m_elapsed = 0;   // while not
    bool m_low_written = false;
    uint8_t m_low_byte = 0;
    bool m_high_next = false;
    uint8_t m_latched_bytes = 0;
    uint16_t m_latched_count = 0;
    std::optional<uint8_t> m_latched_status;
};

} // namespace coffer::devices
