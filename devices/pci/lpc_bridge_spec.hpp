// Intel I/O Controller Hub 9 datasheet 316972-004, 13.1: LPC interface bridge, bus 0 device 31 function 0.
#pragma once

#include <cstdint>

namespace coffer::devices::ich9 {

constexpr uint16_t k_vendor = 0x8086;
constexpr uint16_t k_device = 0x2918;
constexpr uint32_t k_class = 0x06'0100; // ISA bridge

//                          // access  bytes
enum LpcRegister : uint16_t {
    PMBASE = 0x40,        // RW      4     bits 15:7; bit 0 reads 1
    ACPI_CNTL = 0x44,     // RW      1
    GPIOBASE = 0x48,      // RO 1    4     no GPIO block
    PIRQA_ROUT = 0x60,    // RW      4 x 1
    SIRQ_CNTL = 0x64,     // RW      1
    PIRQE_ROUT = 0x68,    // RW      4 x 1
    LPC_IO_DECODE = 0x80, // RW      2     stored only
    LPC_ENABLES = 0x82,   // RW      2     stored only
    GEN_PMCON_1 = 0xA0,   // RW      2
    RCBA = 0xF0,          // RW      4
};

constexpr uint32_t k_pmbase_mask = 0xFF80;
constexpr uint8_t k_acpi_enable = 1U << 7;
constexpr uint8_t k_acpi_cntl_writable = 0x87; // enable and SCI_IRQ_SEL
constexpr uint8_t k_pirq_disabled = 1U << 7;
constexpr uint8_t k_pirq_irq = 0x0F;
constexpr uint8_t k_pirq_reset = 0x80;
constexpr uint16_t k_pirq_legal = 0xDEF8; // IRQ 3-7, 9-12, 14, 15; other values are reserved
constexpr uint16_t k_smi_lock = 1U << 4;
constexpr uint32_t k_rcba_mask = 0xFFFF'C000;
constexpr uint32_t k_rcba_enable = 1U << 0;
constexpr unsigned k_isa_irqs = 16;

} // namespace coffer::devices::ich9
