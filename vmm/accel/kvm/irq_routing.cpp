#include "vmm/accel/kvm/irq_routing.hpp"

#include "base/log.hpp"

namespace coffer::vmm::kvm {

namespace {

constexpr unsigned k_pic_lines = 16;
constexpr unsigned k_pic_cascade = 2;
constexpr unsigned k_ioapic_pins = 24;
constexpr unsigned k_first_msi_gsi = k_ioapic_pins;

kvm_irq_routing_entry chip_entry(unsigned gsi, unsigned chip, unsigned pin) {
    kvm_irq_routing_entry entry{};
    entry.gsi = gsi;
    entry.type = KVM_IRQ_ROUTING_IRQCHIP;
    entry.u.irqchip.irqchip = chip;
    entry.u.irqchip.pin = pin;
    return entry;
}

std::vector<kvm_irq_routing_entry> fixed_routes() {
    std::vector<kvm_irq_routing_entry> routes;
    for (unsigned gsi = 0; gsi < k_pic_lines; ++gsi) {
        if (gsi == k_pic_cascade) continue;
        routes.push_back(chip_entry(gsi, gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, gsi % 8));
    }
    // The MADT says that IRQ 0 is IOAPIC pin 2; KVM's PIT raises GSI 0.
    for (unsigned gsi = 0; gsi < k_ioapic_pins; ++gsi) {
        if (gsi == k_pic_cascade) continue;
        routes.push_back(chip_entry(gsi, KVM_IRQCHIP_IOAPIC, gsi == 0 ? 2 : gsi));
    }
    return routes;
}

} // namespace

Result<void> IrqRouting::install() {
    std::scoped_lock lock(m_mutex);
    return commit();
}

Result<void> IrqRouting::commit() {
    auto routes = fixed_routes();
    for (auto const& [gsi, message] : m_messages) {
        kvm_irq_routing_entry entry{};
        entry.gsi = gsi;
        entry.type = KVM_IRQ_ROUTING_MSI;
        entry.u.msi.address_lo = static_cast<uint32_t>(message.address);
        entry.u.msi.address_hi = static_cast<uint32_t>(message.address >> 32);
        entry.u.msi.data = message.data;
        routes.push_back(entry);
    }
    Table<kvm_irq_routing, kvm_irq_routing_entry> table(routes.size());
    table.header()->nr = static_cast<uint32_t>(routes.size());
    std::copy(routes.begin(), routes.end(), table.entries());
    TRY(m_vm.call(COFFER_KVM(KVM_SET_GSI_ROUTING), table.header())); // replaces all routes
    return {};
}

void IrqRouting::set_line(unsigned gsi, bool asserted) noexcept {
    if (gsi >= k_ioapic_pins || gsi == k_pic_cascade) return;
    kvm_irq_level line{};
    line.irq = gsi;
    line.level = asserted ? 1 : 0;
    int result = m_vm.try_call(COFFER_KVM(KVM_IRQ_LINE), &line);
    if (result < 0) {
        static log::RateLimit limit;
        if (limit.allow()) log::warning("{}", errno_error(-result, fmt::format("cannot set GSI {}", gsi)).message());
    }
}

void IrqRouting::signal_msi(uint64_t address, uint32_t data) noexcept {
    kvm_msi message{};
    message.address_lo = static_cast<uint32_t>(address);
    message.address_hi = static_cast<uint32_t>(address >> 32);
    message.data = data;
    int result = m_vm.try_call(COFFER_KVM(KVM_SIGNAL_MSI), &message);
    // 0: the guest blocked it; below 0: the guest programmed an address that no local APIC answers.
    if (result < 0) {
        static log::RateLimit limit;
        if (limit.allow()) log::debug("MSI {:#x} data {:#x} reaches no CPU", address, data);
    }
}

Result<void> IrqRouting::set_doorbell(Doorbell const& doorbell, int eventfd, bool attach) const {
    kvm_ioeventfd argument{};
    argument.addr = doorbell.address;
    argument.len = doorbell.size;
    argument.fd = eventfd;
    if (!doorbell.mmio) argument.flags |= KVM_IOEVENTFD_FLAG_PIO;
    if (doorbell.datamatch) {
        argument.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
        argument.datamatch = *doorbell.datamatch;
    }
    if (!attach) argument.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
    TRY_CONTEXT(m_vm.call(COFFER_KVM(KVM_IOEVENTFD), &argument),
                fmt::format("doorbell at {} {:#x}", doorbell.mmio ? "address" : "port", doorbell.address));
    return {};
}

Result<void> IrqRouting::attach_doorbell(Doorbell const& doorbell, int eventfd) {
    return set_doorbell(doorbell, eventfd, true);
}

Result<void> IrqRouting::detach_doorbell(Doorbell const& doorbell, int eventfd) {
    return set_doorbell(doorbell, eventfd, false);
}

Result<unsigned> IrqRouting::add_msi_route(uint64_t address, uint32_t data) {
    std::scoped_lock lock(m_mutex);
    unsigned gsi = k_first_msi_gsi;
    while (m_messages.contains(gsi)) ++gsi;
    if (gsi >= m_max_routes)
        return make_error(ErrorCode::Unsupported, "the host's KVM has only {} interrupt routes", m_max_routes);
    m_messages[gsi] = {address, data};
    if (auto committed = commit(); !committed) {
        m_messages.erase(gsi);
        return std::move(committed).error();
    }
    return gsi;
}

Result<void> IrqRouting::update_msi_route(unsigned gsi, uint64_t address, uint32_t data) {
    std::scoped_lock lock(m_mutex);
    auto found = m_messages.find(gsi);
    if (found == m_messages.end()) return make_error(ErrorCode::Internal, "GSI {} is no MSI route", gsi);
    if (found->second.address == address && found->second.data == data) return {};
    found->second = {address, data};
    return commit();
}

Result<void> IrqRouting::remove_msi_route(unsigned gsi) {
    std::scoped_lock lock(m_mutex);
    if (m_messages.erase(gsi) == 0) return make_error(ErrorCode::Internal, "GSI {} is no MSI route", gsi);
    return commit();
}

Result<void> IrqRouting::attach_interrupt(unsigned gsi, int eventfd, int resample_eventfd) {
    kvm_irqfd argument{};
    argument.fd = static_cast<uint32_t>(eventfd);
    argument.gsi = gsi;
    if (resample_eventfd >= 0) {
        argument.flags = KVM_IRQFD_FLAG_RESAMPLE;
        argument.resamplefd = static_cast<uint32_t>(resample_eventfd);
    }
    TRY_CONTEXT(m_vm.call(COFFER_KVM(KVM_IRQFD), &argument), fmt::format("interrupt eventfd of GSI {}", gsi));
    return {};
}

Result<void> IrqRouting::detach_interrupt(unsigned gsi, int eventfd) {
    kvm_irqfd argument{};
    argument.fd = static_cast<uint32_t>(eventfd);
    argument.gsi = gsi;
    argument.flags = KVM_IRQFD_FLAG_DEASSIGN;
    TRY_CONTEXT(m_vm.call(COFFER_KVM(KVM_IRQFD), &argument), fmt::format("interrupt eventfd of GSI {}", gsi));
    return {};
}

} // namespace coffer::vmm::kvm
