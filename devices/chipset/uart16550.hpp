// Serial port 16550A. 8 ports (COM1: 0x3F8, IRQ 4). Source: see uart16550_spec.hpp.
//
// The line is always connected and infinitely fast: what is written is sent at once, CTS, DSR and DCD are on.
// Not emulated: baud rate, parity, framing and break (the settings are kept), DMA mode. The character timeout of the
// receive FIFO is reported at once. MCR.OUT2 gates the interrupt, as on a PC.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <string>

#include "devices/chipset/uart16550_spec.hpp"
#include "devices/core/backends.hpp"
#include "devices/core/device.hpp"
#include "devices/core/irq.hpp"

namespace coffer::devices {

class Uart16550 final : public Device, public PioDevice {
public:
    // `on_room` is called when the guest made room for more input after room() was 0. `sink` outlives this.
    Uart16550(std::string_view name, ByteSink& sink, IrqLine irq, std::function<void()> on_room = {});

    // How many bytes receive() takes now.
    size_t room() const noexcept;
    // From the line to the guest, under the device lock. Past room() bytes, the rest is lost as on a real line
    // (LSR.OE).
    void receive(Bytes bytes);

    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return m_name; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    size_t capacity() const noexcept { return m_fcr & uart::FCR_ENABLE ? uart::k_fifo_size : 1; }
    uint8_t interrupt() const noexcept;
    void update_irq() noexcept { m_irq.set(interrupt() != uart::IIR_NONE && (m_mcr & uart::MCR_OUT2)); }
    void push(uint8_t value);
    uint8_t read_data();
    void write_data(uint8_t value);
    void write_fcr(uint8_t value);
    void update_modem_status() noexcept;
    void clear_received();

    // Static configuration and glue
    std::string m_name;
    ByteSink& m_sink;
    IrqLine m_irq;
    std::function<void()> m_on_room;

    // Volatile state
    uint16_t m_divisor = 0;
    uint8_t m_ier = 0;
    uint8_t m_fcr = 0;
    uint8_t m_lcr = 0;
    uint8_t m_mcr = 0;
    uint8_t m_msr = 0;
    uint8_t m_scratch = 0;
    bool m_overrun = false;
    bool m_thre_pending = false; // the transmitter became empty and IIR has not told it yet
    std::deque<uint8_t> m_received;
};

} // namespace coffer::devices
