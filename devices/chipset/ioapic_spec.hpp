// IOAPIC registers. Sources: Intel 82093AA datasheet 290566-001, 3.1 and 3.2; Intel ICH9 datasheet 316972-004, 13.5
// (24 pins, version 0x20, EOI register).
#pragma once

#include <cstdint>

namespace coffer::devices::ioapic {

constexpr unsigned k_pins = 24;
constexpr uint64_t k_window_size = 0x1000;

// Memory-mapped registers.
enum Mmio : uint16_t {
    IOREGSEL = 0x00, // RW, 8 bits used
    IOWIN = 0x10,    // RW, 32 bits: the register that IOREGSEL selects
    EOIR = 0x40,     // WO, 32 bits, 8 used; version 0x20 and up
};

// Registers behind IOWIN.
enum Index : uint8_t {
    IOAPICID = 0x00,  // RW, bits 27:24
    IOAPICVER = 0x01, // RO
    IOAPICARB = 0x02, // RO
    IOREDTBL = 0x10,  // RW, two a pin: low half, high half
};

constexpr uint32_t k_version = 0x20 | (k_pins - 1) << 16;
constexpr uint32_t k_id_mask = 0x0F00'0000;

// Redirection table entry.
constexpr uint64_t k_vector = 0xFF;
constexpr unsigned k_delivery_mode_shift = 8;
constexpr uint64_t k_delivery_mode = 7ULL << k_delivery_mode_shift;
constexpr uint64_t k_logical = 1ULL << 11;
constexpr uint64_t k_delivery_status = 1ULL << 12; // RO, reads 0: delivery is immediate
constexpr uint64_t k_polarity_low = 1ULL << 13;    // kept, and of no effect: lines are logical levels here
constexpr uint64_t k_remote_irr = 1ULL << 14;      // RO
constexpr uint64_t k_level = 1ULL << 15;
constexpr uint64_t k_masked = 1ULL << 16;
constexpr unsigned k_destination_shift = 56;
constexpr uint64_t k_destination = 0xFFULL << k_destination_shift;
constexpr uint64_t k_writable =
    k_vector | k_delivery_mode | k_logical | k_polarity_low | k_level | k_masked | k_destination;
static_assert((k_writable & (k_remote_irr | k_delivery_status)) == 0);

} // namespace coffer::devices::ioapic
