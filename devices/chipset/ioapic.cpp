#include "devices/chipset/ioapic.hpp"

#include "base/tagged.hpp"
#include "devices/chipset/ioapic_state.hpp"

namespace coffer::devices {

using namespace ioapic;

IoApic::IoApic(InterruptLock& lock, ApicBus& bus) : m_lock(lock), m_bus(bus) {
    m_redirection.fill(k_masked);
}

bool IoApic::send(InterruptGuard const& guard, uint64_t entry) {
    ApicMessage message;
    message.vector = static_cast<uint8_t>(entry & k_vector);
    message.mode = static_cast<DeliveryMode>((entry & k_delivery_mode) >> k_delivery_mode_shift);
    message.logical = entry & k_logical;
    message.level_triggered = entry & k_level;
    message.destination = static_cast<uint32_t>(entry >> k_destination_shift);
    if (message.destination == 0xFF) message.destination = k_apic_broadcast;
    // The 8259A is wired to LINT0 alone, so there is nothing to acknowledge for an ExtINT pin.
    if (message.mode == DeliveryMode::ExtInt || message.mode == DeliveryMode::Smi) return false;
    return m_bus.send(guard, message);
}

void IoApic::service_level(InterruptGuard const& guard, unsigned pin) {
    uint64_t& entry = m_redirection[pin];
    if (!(m_lines & (1U << pin)) || (entry & (k_masked | k_remote_irr)) || !(entry & k_level)) return;
    // Only fixed and lowest-priority deliveries are completed by an EOI (82093AA, 3.2.4, bit 14).
    auto mode = static_cast<DeliveryMode>((entry & k_delivery_mode) >> k_delivery_mode_shift);
    bool taken = send(guard, entry);
    if (taken && (mode == DeliveryMode::Fixed || mode == DeliveryMode::LowestPriority)) entry |= k_remote_irr;
}

void IoApic::set_line(InterruptGuard const& guard, unsigned pin, bool asserted) {
    COFFER_ASSERT(pin < k_pins);
    uint32_t mask = 1U << pin;
    bool rises = asserted && !(m_lines & mask);
    m_lines = asserted ? m_lines | mask : m_lines & ~mask;
    if (!rises) return;
    if (m_redirection[pin] & k_level) {
        service_level(guard, pin);
    } else if (!(m_redirection[pin] & k_masked)) {
        send(guard, m_redirection[pin]); // an edge on a masked pin is lost (82093AA, 3.2.4, bit 16)
    }
}

void IoApic::end_of_interrupt(InterruptGuard const& guard, uint8_t vector) {
    for (unsigned pin = 0; pin < k_pins; ++pin) {
        uint64_t& entry = m_redirection[pin];
        if ((entry & k_vector) != vector || !(entry & k_remote_irr)) continue;
        entry &= ~k_remote_irr;
        service_level(guard, pin);
    }
}

uint32_t IoApic::read_register() const noexcept {
    switch (m_select) {
    case IOAPICID:
    case IOAPICARB: return m_id;
    case IOAPICVER: return k_version;
    default: break;
    }
    unsigned index = m_select - unsigned{IOREDTBL};
    if (m_select < IOREDTBL || index >= 2 * k_pins) return 0;
    return static_cast<uint32_t>(m_redirection[index / 2] >> (index % 2 ? 32 : 0));
}

void IoApic::write_register(InterruptGuard const& guard, uint32_t value) {
    if (m_select == IOAPICID) {
        m_id = value & k_id_mask;
        return;
    }
    unsigned index = m_select - unsigned{IOREDTBL};
    if (m_select < IOREDTBL || index >= 2 * k_pins) return;
    unsigned shift = index % 2 ? 32 : 0;
    uint64_t writable = k_writable & (0xFFFF'FFFFULL << shift);
    uint64_t& entry = m_redirection[index / 2];
    entry = (entry & ~writable) | ((uint64_t{value} << shift) & writable);
    // An edge pin has no remote IRR; software without an EOI register relies on this to clear it.
    if (!(entry & k_level)) entry &= ~k_remote_irr;
    service_level(guard, index / 2);
}

IoStatus IoApic::mmio_read(uint64_t offset, MutBytes to) {
    if (to.size() != 1 && to.size() != 2 && to.size() != 4) return IoStatus::BadSize;
    InterruptGuard guard(m_lock);
    switch (offset) {
    case IOREGSEL: store_le_sized(to, m_select); return IoStatus::Ok;
    case IOWIN: store_le_sized(to, read_register()); return IoStatus::Ok;
    default: return IoStatus::NoSuchRegister;
    }
}

IoStatus IoApic::mmio_write(uint64_t offset, Bytes from) {
    // Firmware writes the 8 bits of IOREGSEL as a byte.
    if (from.size() != 4 && !(offset == IOREGSEL && (from.size() == 1 || from.size() == 2))) return IoStatus::BadSize;
    InterruptGuard guard(m_lock);
    auto value = static_cast<uint32_t>(load_le_sized(from));
    switch (offset) {
    case IOREGSEL: m_select = static_cast<uint8_t>(value); return IoStatus::Ok;
    case IOWIN: write_register(guard, value); return IoStatus::Ok;
    case EOIR: end_of_interrupt(guard, static_cast<uint8_t>(value)); return IoStatus::Ok;
    default: return IoStatus::NoSuchRegister;
    }
}

void IoApic::reset(ResetKind) noexcept {
    InterruptGuard guard(m_lock);
    m_select = 0;
    m_id = 0;
    m_lines = 0;
    m_redirection.fill(k_masked);
}

Result<ByteVector> IoApic::save() const {
    InterruptGuard guard(m_lock);
    IoApicState state;
    state.select = m_select;
    state.id = m_id;
    state.lines = m_lines;
    state.redirection = m_redirection;
    return encode_fields(state);
}

// Sends nothing: what was sent before the save is in the local APICs' saved state.
Result<void> IoApic::restore(Bytes bytes) {
    IoApicState state;
    TRY(decode_fields(bytes, state));
    bool sound = !(state.id & ~k_id_mask) && !(state.lines >> k_pins);
    for (uint64_t entry : state.redirection)
        sound = sound && !(entry & ~(k_writable | k_remote_irr)) && ((entry & k_level) || !(entry & k_remote_irr));
    if (!sound) return make_error(ErrorCode::Corrupt, "saved state of the IOAPIC is out of range");
    InterruptGuard guard(m_lock);
    m_select = state.select;
    m_id = state.id;
    m_lines = state.lines;
    m_redirection = state.redirection;
    return {};
}

} // namespace coffer::devices
