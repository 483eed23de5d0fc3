// The PC's small ways to reset the machine: RST_CNT at 0xCF9 (Intel ICH9 datasheet 316972-004, 13.7.5), port 0x92
// (13.7.2, fast INIT and A20) and the keyboard controller's reset pulse at 0x64.
#pragma once

#include "devices/core/backends.hpp"
#include "devices/core/device.hpp"

namespace coffer::devices {

// One port. The machine resets as a whole when RST_CPU rises, whatever kind of reset is asked for.
class ResetControl final : public Device, public PioDevice {
public:
    explicit ResetControl(MachineControl& control) : m_control(control) {}
    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;
    std::string_view unit_name() const noexcept override { return "reset-control"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    MachineControl& m_control;
    uint8_t m_value = 0;
};

// One port. The A20 bit is kept, and masks nothing: address line 20 is always on.
class SystemControlA final : public Device, public PioDevice {
public:
    explicit SystemControlA(MachineControl& control) : m_control(control) {}
    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;
    std::string_view unit_name() const noexcept override { return "system-control-a"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    static constexpr uint8_t k_reset_value = 0x02; // A20 on
    MachineControl& m_control;
    uint8_t m_value = k_reset_value;
};

// One port, 0x64: commands 0xF0-0xFF with bit 0 clear pulse the CPU's reset line (IBM PS/2 technical reference,
// keyboard controller). There is no controller behind it: it reads all ones, as firmware and kernels take for "not
// fitted", and they then lose no time with it. Has no state.
class KeyboardReset final : public PioDevice {
public:
    explicit KeyboardReset(MachineControl& control) : m_control(control) {}
    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;

private:
    MachineControl& m_control;
};

// Ports that guests write for the time it takes, or for a diagnostic card: 0x80 (POST), 0xEB and 0xED. Writes go
// nowhere, reads give all ones. Has no state.
class IgnoredPorts final : public PioDevice {
public:
    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;
};

} // namespace coffer::devices
