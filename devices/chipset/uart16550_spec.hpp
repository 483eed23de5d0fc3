// 16550A registers. Source: National Semiconductor PC16550D data sheet (June 1995), 8.0 "Registers".
#pragma once

#include <cstddef>
#include <cstdint>

namespace coffer::devices::uart {

enum Port : uint16_t {
    RBR_THR = 0, // RO receive, WO transmit; divisor low with LCR.DLAB
    IER = 1,     // RW; divisor high with LCR.DLAB
    IIR_FCR = 2, // RO IIR, WO FCR
    LCR = 3,     // RW
    MCR = 4,     // RW
    LSR = 5,     // RO
    MSR = 6,     // RO
    SCR = 7,     // RW
};
constexpr uint16_t k_ports = 8;
constexpr size_t k_fifo_size = 16;

constexpr uint8_t IER_RDA = 0x01, IER_THRE = 0x02, IER_RLS = 0x04, IER_MS = 0x08, k_ier_writable = 0x0F;

// IIR bits 3:0, in order of priority.
constexpr uint8_t IIR_NONE = 0x01, IIR_RLS = 0x06, IIR_RDA = 0x04, IIR_TIMEOUT = 0x0C, IIR_THRE = 0x02, IIR_MS = 0x00;
constexpr uint8_t IIR_FIFOS = 0xC0;

constexpr uint8_t FCR_ENABLE = 0x01, FCR_CLEAR_RX = 0x02, FCR_CLEAR_TX = 0x04;
constexpr unsigned k_fcr_trigger_shift = 6;
constexpr size_t k_triggers[4] = {1, 4, 8, 14};

constexpr uint8_t LCR_DLAB = 0x80;
constexpr uint8_t MCR_DTR = 0x01, MCR_RTS = 0x02, MCR_OUT1 = 0x04, MCR_OUT2 = 0x08, MCR_LOOP = 0x10;
constexpr uint8_t k_mcr_writable = 0x1F;
constexpr uint8_t LSR_DR = 0x01, LSR_OE = 0x02, LSR_THRE = 0x20, LSR_TEMT = 0x40;
constexpr uint8_t MSR_DELTA = 0x0F, MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80;
constexpr uint8_t k_msr_teri = 0x04; // delta bit of RI: its trailing edge only

} // namespace coffer::devices::uart
