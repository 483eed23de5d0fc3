// 8254 timer with port 0x61. Sources: see pit_spec.hpp.
//
// Ports: ports() at 0x40 (4), system_control_b() at 0x61 (1). Counter 0 drives its IRQ line, counter 2 is gated and
// seen through port 0x61; no sound comes out.
#pragma once

#include <array>
#include <memory>

#include "devices/chipset/pit_channel.hpp"
#include "devices/chipset/port_face.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

class Pit final : public Device {
    IoStatus read(uint16_t offset, MutBytes to);
    IoStatus write(uint16_t offset, Bytes from);
    IoStatus system_control_read(uint16_t offset, MutBytes to);
    IoStatus system_control_write(uint16_t offset, Bytes from);

public:
    Pit(Scheduler& scheduler, IrqLine irq0);

    PioDevice& ports() noexcept { return m_ports; }
    PioDevice& system_control_b() noexcept { return m_system_control_ports; }

    // The HPET's legacy replacement takes IRQ 0 away from the timer (Hpet's callback).
    void connect_irq0(bool connected) noexcept;

    std::string_view unit_name() const noexcept override { return "pit"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    PitChannel::Tick now() const noexcept;
    void write_control(uint8_t value) noexcept;
    // Line and timer after anything that changed counter 0.
    void update_irq0() noexcept;
    void on_timer() noexcept;
    void arm() noexcept;
    static std::array<PitChannel, pit::k_channels> reset_channels() noexcept;

    // Glue
    Scheduler& m_scheduler;
    IrqLine m_irq0;
    std::unique_ptr<Timer> m_timer;
    PortFace<Pit, &Pit::read, &Pit::write> m_ports{*this};
    PortFace<Pit, &Pit::system_control_read, &Pit::system_control_write> m_system_control_ports{*this};

    // Volatile state
    std::array<PitChannel, pit::k_channels> m_channels;
    uint8_t m_system_control = 0; // writable bits of port 0x61
    bool m_irq0_connected = true;
    std::optional<PitChannel::Tick> m_next_rise;
};

} // namespace coffer::devices
