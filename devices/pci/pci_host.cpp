#include "devices/pci/pci_host.hpp"

#include "base/log.hpp"
#include "base/tagged.hpp"
#include "devices/pci/pci_host_state.hpp"

namespace coffer::devices {

using namespace pci;

namespace {
constexpr IoPort k_config_ports{0xCF8};
constexpr uint16_t k_config_port_count = 8;
constexpr uint16_t k_reset_control = 1; // 0xCF9
constexpr uint16_t k_config_data = 4;   // 0xCFC
// CONFIG_ADDRESS: enable, bus, device, function, doubleword.
constexpr uint32_t k_address_enable = 0x8000'0000;
constexpr uint32_t k_address_writable = 0x80FF'FFFC;
constexpr uint64_t k_ecam_bus_size = 0x10'0000;

bool within_doubleword(uint64_t offset, size_t size) noexcept {
    return (size == 1 || size == 2 || size == 4) && offset % 4 + size <= 4;
}
} // namespace

PciHost::PciHost(Wiring const& wiring) : m_wiring(wiring) {}

Result<void> PciHost::connect() {
    return m_wiring.pio.attach(k_config_ports, k_config_port_count, *this);
}

Result<void> PciHost::add(unsigned device, unsigned function, PciFunction& target) {
    COFFER_ASSERT(device < k_pci_slots && function < k_functions);
    Slot& slot = m_slots[device * k_functions + function];
    if (slot.target)
        return make_error(ErrorCode::Internal, "PCI slot 00:{:02x}.{} is taken by {}", device, function,
                          slot.target->unit_name());
    slot.target = &target;
    target.set_upstream(*this);
    // A slot without function 0 is not scanned, and one with more must say so there (PCI 3.0, 3.2.2.3.4).
    PciFunction* first = m_slots[device * k_functions].target;
    for (unsigned other = 1; first && other < k_functions; ++other)
        if (m_slots[device * k_functions + other].target) first->set_multifunction();
    map_missing();
    return {};
}

void PciHost::set_ecam(std::optional<EcamWindow> window) noexcept {
    if (window == m_ecam) return;
    m_ecam = window;
    if (m_mapped_ecam) {
        m_wiring.mmio.detach(m_mapped_ecam->base);
        m_mapped_ecam.reset();
    }
    map_missing();
}

void PciHost::map_ecam() noexcept {
    static log::RateLimit limit;
    if (!m_ecam || m_mapped_ecam) return;
    if (auto attached = m_wiring.mmio.attach(m_ecam->base, m_ecam->buses * k_ecam_bus_size, *this)) {
        m_mapped_ecam = m_ecam;
    } else if (limit.allow()) {
        log::warning("PCI: the ECAM window stays unmapped: {}", attached.error().message());
    }
}

void PciHost::unmap(Slot& slot) noexcept {
    for (unsigned index = 0; index < k_bar_count; ++index) {
        auto& mapped = slot.mapped[index];
        if (!mapped || slot.target->bar_decode(index) == mapped) continue;
        if (slot.target->bar(index).kind == BarKind::Io)
            m_wiring.pio.detach(IoPort{static_cast<uint16_t>(*mapped)});
        else
            m_wiring.mmio.detach(GuestPhysAddr{*mapped});
        mapped.reset();
    }
}

void PciHost::map_missing() noexcept {
    static log::RateLimit limit;
    map_ecam();
    for (auto& slot : m_slots) {
        if (!slot.target) continue;
        for (unsigned index = 0; index < k_bar_count; ++index) {
            auto wanted = slot.target->bar_decode(index);
            if (!wanted || slot.mapped[index]) continue;
            auto const& bar = slot.target->bar(index);
            auto attached = bar.kind == BarKind::Io
                                ? m_wiring.pio.attach(IoPort{static_cast<uint16_t>(*wanted)}, bar.size, *bar.io)
                                : m_wiring.mmio.attach(GuestPhysAddr{*wanted}, bar.size, *bar.memory);
            if (attached)
                slot.mapped[index] = wanted;
            else if (limit.allow())
                log::warning("PCI: BAR {} of {} stays unmapped: {}", index, slot.target->unit_name(),
                             attached.error().message());
        }
    }
}

void PciHost::decode_changed(PciFunction& function) noexcept {
    for (auto& slot : m_slots)
        if (slot.target == &function) unmap(slot);
    map_missing();
}

void PciHost::intx_changed(PciFunction&) noexcept {
    std::array<bool, k_pirq_count> levels{};
    for (unsigned index = 0; index < m_slots.size(); ++index) {
        PciFunction const* function = m_slots[index].target;
        if (!function || !function->intx_asserted()) continue;
        if (auto pin = function->intx_pin()) levels[pirq_of(index / k_functions, *pin)] = true;
    }
    for (unsigned pirq = 0; pirq < k_pirq_count; ++pirq) {
        if (levels[pirq] == m_pirq_levels[pirq]) continue;
        m_pirq_levels[pirq] = levels[pirq];
        if (m_pirqs) m_pirqs->set_pirq(pirq, levels[pirq]);
    }
}

void PciHost::send_message(uint64_t address, uint32_t data) noexcept {
    static log::RateLimit limit;
    // Intel SDM vol. 3, 11.11.1: interrupt messages are writes to this megabyte; a function told to write elsewhere
    // would be a DMA write that no guest wants.
    if ((address >> 20) != 0xFEE) {
        if (limit.allow()) log::warning("PCI: interrupt message to {:#x} was dropped", address);
        return;
    }
    m_wiring.msi.signal_msi(address, data);
}

PciFunction* PciHost::function_at(unsigned bus, unsigned device_function) const noexcept {
    if (bus != 0 || device_function >= m_slots.size()) return nullptr;
    return m_slots[device_function].target;
}

PciFunction* PciHost::addressed() const noexcept {
    if ((m_config_address & k_address_enable) == 0) return nullptr;
    return function_at(m_config_address >> 16 & 0xFF, m_config_address >> 8 & 0xFF);
}

IoStatus PciHost::pio_read(uint16_t offset, MutBytes to) {
    if (offset == 0 && to.size() == 4) {
        store_le<uint32_t>(to, 0, m_config_address);
        return IoStatus::Ok;
    }
    if (offset == k_reset_control && to.size() == 1 && m_wiring.reset_control)
        return m_wiring.reset_control->pio_read(0, to);
    if (offset < k_config_data) return IoStatus::NoSuchRegister;
    if (!within_doubleword(offset, to.size())) return IoStatus::BadSize;
    if (PciFunction* function = addressed())
        function->config_read(static_cast<uint16_t>((m_config_address & 0xFC) | (offset & 3U)), to);
    else
        fill_all_ones(to);
    return IoStatus::Ok;
}

IoStatus PciHost::pio_write(uint16_t offset, Bytes from) {
    if (offset == 0 && from.size() == 4) {
        m_config_address = load_le<uint32_t>(from) & k_address_writable;
        return IoStatus::Ok;
    }
    if (offset == k_reset_control && from.size() == 1 && m_wiring.reset_control)
        return m_wiring.reset_control->pio_write(0, from);
    if (offset < k_config_data) return IoStatus::NoSuchRegister;
    if (!within_doubleword(offset, from.size())) return IoStatus::BadSize;
    if (PciFunction* function = addressed())
        function->config_write(static_cast<uint16_t>((m_config_address & 0xFC) | (offset & 3U)), from);
    return IoStatus::Ok;
}

IoStatus PciHost::mmio_read(uint64_t offset, MutBytes to) {
    if (!within_doubleword(offset, to.size())) return IoStatus::BadSize;
    auto bus = static_cast<unsigned>(offset / k_ecam_bus_size);
    if (PciFunction* function = function_at(bus, offset >> 12 & 0xFF))
        function->config_read(static_cast<uint16_t>(offset & 0xFFF), to);
    else
        fill_all_ones(to);
    return IoStatus::Ok;
}

IoStatus PciHost::mmio_write(uint64_t offset, Bytes from) {
    if (!within_doubleword(offset, from.size())) return IoStatus::BadSize;
    auto bus = static_cast<unsigned>(offset / k_ecam_bus_size);
    if (PciFunction* function = function_at(bus, offset >> 12 & 0xFF))
        function->config_write(static_cast<uint16_t>(offset & 0xFFF), from);
    return IoStatus::Ok;
}

void PciHost::reset(ResetKind) noexcept {
    m_config_address = 0;
}

Result<ByteVector> PciHost::save() const {
    return encode_fields(PciHostState{m_config_address});
}

Result<void> PciHost::restore(Bytes state) {
    PciHostState saved;
    TRY(decode_fields(state, saved));
    m_config_address = saved.config_address & k_address_writable;
    return {};
}

} // namespace coffer::devices
