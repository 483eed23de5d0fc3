// How PCI INTx pins reach interrupt controllers. The ACPI _PRT is written from this file, and nothing else decides it.
//
// Pin INTx of the function in slot `device` of bus 0 drives PIRQ[(device + pin) & 7], pin 0 being INTA#. PIRQ[A..H]
// (0..7) are
//   - GSI 16..23 (IOAPIC inputs, level, active low), always: the _PRT of APIC mode names GSIs directly, with no link
//     devices (Intel ICH9 datasheet 316972, 5.9: PIRQ[A:H] are IOAPIC inputs 16-23);
//   - and the ISA IRQ that PIRQ[A-H]_ROUT of the LPC bridge names, for PIC mode (ibid. 13.1.17, 13.1.20).
// OVMF writes Interrupt Line registers as slots 0-24 rotated modulo 4 with PIRQ A-D and E-H routed alike, which this
// mapping agrees with; devices that need INTx in PIC mode stay in slots 1-24.
#pragma once

namespace coffer::devices {

constexpr unsigned k_pirq_count = 8;
constexpr unsigned k_first_pirq_gsi = 16;
constexpr unsigned k_pci_slots = 32;

// `pin` is 0..3 for INTA#..INTD#: the Interrupt Pin register less one, and the pin column of _PRT.
constexpr unsigned pirq_of(unsigned device, unsigned pin) noexcept {
    return (device + pin) % k_pirq_count;
}
constexpr unsigned gsi_of_pirq(unsigned pirq) noexcept {
    return k_first_pirq_gsi + pirq;
}
constexpr unsigned gsi_of(unsigned device, unsigned pin) noexcept {
    return gsi_of_pirq(pirq_of(device, pin));
}

static_assert(gsi_of(1, 0) == 17 && gsi_of(31, 0) == 23 && gsi_of(7, 3) == 18);

} // namespace coffer::devices
