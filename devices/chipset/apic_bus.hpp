// Interrupt messages between IOAPIC, MSI senders and local APICs (Intel SDM vol. 3, order 325384-081, 11.6 and 11.11).
#pragma once

#include <cstdint>

#include "devices/chipset/interrupt_lock.hpp"

namespace coffer::devices {

// SDM vol. 3, figure 11-12; the encoding is shared by the ICR, the LVTs, MSI data and IOAPIC redirection entries.
enum class DeliveryMode : uint8_t {
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    Nmi = 4,
    Init = 5,
    StartUp = 6,
    ExtInt = 7,
};

struct ApicMessage {
    uint32_t destination = 0; // an APIC ID, or a logical destination
    uint8_t vector = 0;
    DeliveryMode mode = DeliveryMode::Fixed;
    bool logical = false;
    bool level_triggered = false;
};

// Broadcast in either destination mode; senders with 8-bit destinations turn 0xFF into it where it means that.
constexpr uint32_t k_apic_broadcast = 0xFFFF'FFFF;

// What a local APIC or IOAPIC needs of the others. Implemented by InterruptFabric.
class ApicBus {
public:
    virtual ~ApicBus() = default;
    // Arbitrates lowest priority among the addressed; false where nobody takes the message, which is lost then.
    virtual bool send(InterruptGuard const& guard, ApicMessage const& message) = 0;
    // To all that accept it but `except_cpu` (k_no_cpu: no exception).
    virtual bool send_to_all(InterruptGuard const& guard, ApicMessage const& message, unsigned except_cpu) = 0;
    // A level-triggered interrupt was completed: the IOAPIC's pins of this vector may fire again.
    virtual void end_of_interrupt(InterruptGuard const& guard, uint8_t vector) = 0;
    // An INTA cycle at the 8259A behind LINT0.
    virtual uint8_t acknowledge_pic(InterruptGuard const& guard) = 0;
};

constexpr unsigned k_no_cpu = ~0U;

} // namespace coffer::devices
