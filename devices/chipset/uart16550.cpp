#include "devices/chipset/uart16550.hpp"

#include <utility>

#include "base/tagged.hpp"
#include "devices/chipset/uart16550_state.hpp"

namespace coffer::devices {

using namespace uart;

namespace {
constexpr uint8_t k_line_status = MSR_CTS | MSR_DSR | MSR_DCD;
}

Uart16550::Uart16550(std::string_view name, ByteSink& sink, IrqLine irq, std::function<void()> on_room)
    : m_name(name), m_sink(sink), m_irq(irq), m_on_room(std::move(on_room)), m_msr(k_line_status) {}

size_t Uart16550::room() const noexcept {
    // In loopback the line is cut off; what comes waits outside.
    if (m_mcr & MCR_LOOP) return 0;
    return capacity() - m_received.size();
}

void Uart16550::push(uint8_t value) {
    if (m_received.size() >= capacity()) {
        m_overrun = true;
        return;
    }
    m_received.push_back(value);
}

void Uart16550::receive(Bytes bytes) {
    if (m_mcr & MCR_LOOP) return;
    for (std::byte b : bytes) push(static_cast<uint8_t>(b));
    update_irq();
}

uint8_t Uart16550::interrupt() const noexcept {
    if ((m_ier & IER_RLS) && m_overrun) return IIR_RLS;
    if ((m_ier & IER_RDA) && !m_received.empty()) {
        bool triggered = !(m_fcr & FCR_ENABLE) || m_received.size() >= k_triggers[m_fcr >> k_fcr_trigger_shift];
        return triggered ? IIR_RDA : IIR_TIMEOUT;
    }
    if ((m_ier & IER_THRE) && m_thre_pending) return IIR_THRE;
    if ((m_ier & IER_MS) && (m_msr & MSR_DELTA)) return IIR_MS;
    return IIR_NONE;
}

uint8_t Uart16550::read_data() {
    bool was_full = room() == 0;
    uint8_t value = 0;
    if (!m_received.empty()) {
        value = m_received.front();
        m_received.pop_front();
    }
    if (was_full && room() > 0 && m_on_room) m_on_room();
    return value;
}

void Uart16550::clear_received() {
    bool was_full = room() == 0;
    m_received.clear();
    if (was_full && room() > 0 && m_on_room) m_on_room();
}

void Uart16550::write_data(uint8_t value) {
    if (m_mcr & MCR_LOOP) {
        push(value);
    } else {
        auto byte = static_cast<std::byte>(value);
        m_sink.write(Bytes(&byte, 1));
    }
    m_thre_pending = true;
}

void Uart16550::write_fcr(uint8_t value) {
    bool toggles = (value ^ m_fcr) & FCR_ENABLE;
    m_fcr = value & FCR_ENABLE ? static_cast<uint8_t>(FCR_ENABLE | (value & 0xC0)) : uint8_t{0};
    if (toggles || (value & FCR_CLEAR_RX)) clear_received();
    if (value & FCR_CLEAR_TX) m_thre_pending = true;
}

// Modem inputs: the line's, or in loopback our own outputs (PC16550D, 8.6.7).
void Uart16550::update_modem_status() noexcept {
    uint8_t inputs = k_line_status;
    if (m_mcr & MCR_LOOP) {
        inputs = 0;
        if (m_mcr & MCR_RTS) inputs |= MSR_CTS;
        if (m_mcr & MCR_DTR) inputs |= MSR_DSR;
        if (m_mcr & MCR_OUT1) inputs |= MSR_RI;
        if (m_mcr & MCR_OUT2) inputs |= MSR_DCD;
    }
    auto changed = static_cast<uint8_t>((m_msr ^ inputs) >> 4);
    if (inputs & MSR_RI) changed &= static_cast<uint8_t>(~k_msr_teri);
    m_msr = static_cast<uint8_t>(inputs | (m_msr & MSR_DELTA) | changed);
}

IoStatus Uart16550::pio_read(uint16_t offset, MutBytes to) {
    if (to.size() != 1) return IoStatus::BadSize;
    bool divisor = m_lcr & LCR_DLAB;
    uint8_t value = 0;
    switch (offset) {
    case RBR_THR: value = divisor ? static_cast<uint8_t>(m_divisor) : read_data(); break;
    case IER: value = divisor ? static_cast<uint8_t>(m_divisor >> 8) : m_ier; break;
    case IIR_FCR:
        value = interrupt();
        if (value == IIR_THRE) m_thre_pending = false; // told
        if (m_fcr & FCR_ENABLE) value |= IIR_FIFOS;
        break;
    case LCR: value = m_lcr; break;
    case MCR: value = m_mcr; break;
    case LSR:
        value = LSR_THRE | LSR_TEMT;
        if (!m_received.empty()) value |= LSR_DR;
        if (m_overrun) value |= LSR_OE;
        m_overrun = false;
        break;
    case MSR:
        value = m_msr;
        m_msr &= static_cast<uint8_t>(~MSR_DELTA);
        break;
    case SCR: value = m_scratch; break;
    default: return IoStatus::NoSuchRegister;
    }
    to[0] = static_cast<std::byte>(value);
    update_irq();
    return IoStatus::Ok;
}

IoStatus Uart16550::pio_write(uint16_t offset, Bytes from) {
    if (from.size() != 1) return IoStatus::BadSize;
    auto value = static_cast<uint8_t>(from[0]);
    bool divisor = m_lcr & LCR_DLAB;
    switch (offset) {
    case RBR_THR:
        if (divisor)
            m_divisor = static_cast<uint16_t>((m_divisor & 0xFF00) | value);
        else
            write_data(value);
        break;
    case IER:
        if (divisor) {
            m_divisor = static_cast<uint16_t>((m_divisor & 0xFF) | value << 8);
        } else {
            // Enabling it while the transmitter is empty raises the interrupt (PC16550D, 8.4).
            if ((value & ~m_ier) & IER_THRE) m_thre_pending = true;
            m_ier = value & k_ier_writable;
        }
        break;
    case IIR_FCR: write_fcr(value); break;
    case LCR: m_lcr = value; break;
    case MCR: {
        bool was_closed = room() == 0;
        m_mcr = value & k_mcr_writable;
        update_modem_status();
        if (was_closed && room() > 0 && m_on_room) m_on_room();
        break;
    }
    case LSR:
    case MSR: break; // read-only
    case SCR: m_scratch = value; break;
    default: return IoStatus::NoSuchRegister;
    }
    update_irq();
    return IoStatus::Ok;
}

void Uart16550::reset(ResetKind) noexcept {
    bool was_closed = room() == 0;
    m_divisor = 0;
    m_ier = 0;
    m_fcr = 0;
    m_lcr = 0;
    m_mcr = 0;
    m_msr = k_line_status;
    m_scratch = 0;
    m_overrun = false;
    m_thre_pending = false;
    m_received.clear();
    update_irq();
    if (was_closed && m_on_room) m_on_room();
}

Result<ByteVector> Uart16550::save() const {
    UartState state;
    state.divisor = m_divisor;
    state.ier = m_ier;
    state.fcr = m_fcr;
    state.lcr = m_lcr;
    state.mcr = m_mcr;
    state.msr = m_msr;
    state.scratch = m_scratch;
    state.overrun = m_overrun;
    state.thre_pending = m_thre_pending;
    for (uint8_t value : m_received) state.received.push_back(static_cast<std::byte>(value));
    return encode_fields(std::move(state));
}

Result<void> Uart16550::restore(Bytes bytes) {
    UartState state;
    TRY(decode_fields(bytes, state));
    size_t capacity = state.fcr & FCR_ENABLE ? k_fifo_size : 1;
    bool sound = !(state.ier & ~k_ier_writable) && !(state.mcr & ~k_mcr_writable) &&
                 state.received.size() <= capacity && (state.fcr & FCR_ENABLE ? !(state.fcr & 0x3E) : state.fcr == 0);
    if (!sound) return make_error(ErrorCode::Corrupt, "saved state of serial port {} is out of range", m_name);
    m_divisor = state.divisor;
    m_ier = state.ier;
    m_fcr = state.fcr;
    m_lcr = state.lcr;
    m_mcr = state.mcr;
    m_msr = state.msr;
    m_scratch = state.scratch;
    m_overrun = state.overrun;
    m_thre_pending = state.thre_pending;
    m_received.clear();
    for (std::byte b : state.received) m_received.push_back(static_cast<uint8_t>(b));
    update_irq();
    return {};
}

} // namespace coffer::devices
