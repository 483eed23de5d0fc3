#include "devices/chipset/interrupt_fabric.hpp"

namespace coffer::devices {

namespace {

// MSI address and data (Intel SDM vol. 3, order 325384-081, 11.11.1 and 11.11.2).
constexpr uint64_t k_msi_window = 0xFEE0'0000;
constexpr uint64_t k_msi_window_mask = ~uint64_t{0xF'FFFF};
constexpr unsigned k_msi_destination_shift = 12;
constexpr uint64_t k_msi_redirection_hint = 1U << 3;
constexpr uint64_t k_msi_logical = 1U << 2;
constexpr unsigned k_msi_mode_shift = 8;
constexpr uint32_t k_msi_assert = 1U << 14;
constexpr uint32_t k_msi_level = 1U << 15;

constexpr unsigned k_gsi_pit = 0;
constexpr unsigned k_pin_pit = 2;

} // namespace

InterruptFabric::InterruptFabric(unsigned cpus, Scheduler& scheduler, TscClock const& tsc)
    : m_pic(m_lock,
            [this](InterruptGuard const& guard, bool asserted) {
                for (auto& apic : m_local_apics) apic->set_lint0(guard, asserted);
            }),
      m_ioapic(m_lock, *this) {
    COFFER_ASSERT(cpus > 0);
    ApicBus& bus = *this;
    for (unsigned i = 0; i < cpus; ++i)
        m_local_apics.push_back(std::make_unique<LocalApic>(i, m_lock, bus, scheduler, tsc));
}

std::vector<Device*> InterruptFabric::units() {
    std::vector<Device*> units{&m_pic, &m_ioapic};
    for (auto& apic : m_local_apics) units.push_back(apic.get());
    return units;
}

void InterruptFabric::set_line(unsigned gsi, bool asserted) noexcept {
    if (gsi >= ioapic::k_pins || gsi == k_pin_pit) return;
    InterruptGuard guard(m_lock);
    m_ioapic.set_line(guard, gsi == k_gsi_pit ? k_pin_pit : gsi, asserted);
    if (gsi < pic::k_inputs) m_pic.set_line(guard, gsi, asserted);
}

void InterruptFabric::signal_msi(uint64_t address, uint32_t data) noexcept {
    if ((address & k_msi_window_mask) != k_msi_window) return; // a write to nowhere
    ApicMessage message;
    message.vector = static_cast<uint8_t>(data);
    message.mode = static_cast<DeliveryMode>(data >> k_msi_mode_shift & 7);
    message.logical = address & k_msi_logical;
    message.level_triggered = data & k_msi_level;
    if (message.level_triggered && !(data & k_msi_assert)) return;
    message.destination = static_cast<uint32_t>(address >> k_msi_destination_shift & 0xFF);
    if (message.destination == 0xFF) message.destination = k_apic_broadcast;
    if ((address & k_msi_redirection_hint) && message.mode == DeliveryMode::Fixed)
        message.mode = DeliveryMode::LowestPriority;
    InterruptGuard guard(m_lock);
    send(guard, message);
}

bool InterruptFabric::send(InterruptGuard const& guard, ApicMessage const& message) {
    if (message.mode != DeliveryMode::LowestPriority) return send_to_all(guard, message, k_no_cpu);
    LocalApic* lowest = nullptr;
    for (auto& apic : m_local_apics)
        if (apic->accepts(guard, message) &&
            (!lowest || apic->processor_priority(guard) < lowest->processor_priority(guard)))
            lowest = apic.get();
    if (lowest) lowest->deliver(guard, message);
    return lowest != nullptr;
}

bool InterruptFabric::send_to_all(InterruptGuard const& guard, ApicMessage const& message, unsigned except_cpu) {
    bool taken = false;
    for (auto& apic : m_local_apics) {
        if (apic->index() == except_cpu || !apic->accepts(guard, message)) continue;
        apic->deliver(guard, message);
        taken = true;
    }
    return taken;
}

void InterruptFabric::end_of_interrupt(InterruptGuard const& guard, uint8_t vector) {
    m_ioapic.end_of_interrupt(guard, vector);
}

uint8_t InterruptFabric::acknowledge_pic(InterruptGuard const& guard) {
    return m_pic.acknowledge(guard);
}

} // namespace coffer::devices
