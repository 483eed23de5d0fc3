#include "devices/pci/pci_function.hpp"

#include <bit>

namespace coffer::devices {

using namespace pci;

PciFunction::PciFunction(PciIdentity const& identity)
    : m_config(identity.express ? k_express_config_size : k_conventional_config_size), m_reset(m_config.size()),
      m_writable(m_config.size()), m_write_one_to_clear(m_config.size()) {
    set_config16(VENDOR_ID, identity.vendor);
    set_config16(DEVICE_ID, identity.device);
    // Which enables exist follows from the BARs; these are for every function.
    set_config16(COMMAND, 0, COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE);
    set_write_one_to_clear16(STATUS, STATUS_ERRORS);
    set_config8(REVISION_ID, identity.revision);
    set_config8(CLASS_CODE, static_cast<uint8_t>(identity.class_code));
    set_config16(CLASS_CODE + 1, static_cast<uint16_t>(identity.class_code >> 8));
    set_config8(CACHE_LINE_SIZE, 0, 0xFF);
    set_config16(SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor);
    set_config16(SUBSYSTEM_ID, identity.subsystem);
    set_config8(INTERRUPT_LINE, 0, identity.interrupt_pin != 0 ? 0xFF : 0);
    set_config8(INTERRUPT_PIN, identity.interrupt_pin);
}

void PciFunction::set_config8(uint16_t offset, uint8_t value, uint8_t write_mask) {
    COFFER_ASSERT(offset < m_config.size());
    m_config[offset] = m_reset[offset] = std::byte{value};
    m_writable[offset] = std::byte{write_mask};
}

void PciFunction::set_config16(uint16_t offset, uint16_t value, uint16_t write_mask) {
    set_config8(offset, static_cast<uint8_t>(value), static_cast<uint8_t>(write_mask));
    set_config8(static_cast<uint16_t>(offset + 1), static_cast<uint8_t>(value >> 8),
                static_cast<uint8_t>(write_mask >> 8));
}

void PciFunction::set_config32(uint16_t offset, uint32_t value, uint32_t write_mask) {
    set_config16(offset, static_cast<uint16_t>(value), static_cast<uint16_t>(write_mask));
    set_config16(static_cast<uint16_t>(offset + 2), static_cast<uint16_t>(value >> 16),
                 static_cast<uint16_t>(write_mask >> 16));
}

void PciFunction::set_write_one_to_clear16(uint16_t offset, uint16_t mask) {
    store_le<uint16_t>(m_write_one_to_clear, offset, mask);
}

void PciFunction::set_multifunction() noexcept {
    m_config[HEADER_TYPE] |= std::byte{k_header_multifunction};
    m_reset[HEADER_TYPE] |= std::byte{k_header_multifunction};
}

void PciFunction::add_memory_bar(unsigned index, BarKind kind, uint64_t size, MmioDevice& target) {
    bool wide = kind == BarKind::Memory64;
    COFFER_ASSERT(wide || kind == BarKind::Memory32);
    COFFER_ASSERT(index + (wide ? 1U : 0U) < k_bar_count && m_bars[index].kind == BarKind::None);
    COFFER_ASSERT(is_power_of_two(size) && size >= 16 && (wide || size <= 0x8000'0000));
    auto offset = static_cast<uint16_t>(BAR0 + 4 * index);
    uint64_t mask = ~(size - 1);
    set_config32(offset, wide ? k_bar_memory_64 : 0, static_cast<uint32_t>(mask));
    m_bars[index] = Bar{kind, size, &target, nullptr};
    if (wide) {
        COFFER_ASSERT(m_bars[index + 1].kind == BarKind::None);
        set_config32(static_cast<uint16_t>(offset + 4), 0, static_cast<uint32_t>(mask >> 32));
        m_bars[index + 1].kind = BarKind::UpperHalf;
    }
    m_writable[COMMAND] |= std::byte{COMMAND_MEMORY};
}

void PciFunction::add_io_bar(unsigned index, uint64_t size, PioDevice& target) {
    COFFER_ASSERT(index < k_bar_count && m_bars[index].kind == BarKind::None);
    COFFER_ASSERT(is_power_of_two(size) && size >= 4 && size <= 256);
    set_config32(static_cast<uint16_t>(BAR0 + 4 * index), k_bar_io, static_cast<uint32_t>(~(size - 1)));
    m_bars[index] = Bar{BarKind::Io, size, nullptr, &target};
    m_writable[COMMAND] |= std::byte{COMMAND_IO};
}

uint16_t PciFunction::add_capability(CapabilityId id, uint16_t size) {
    uint16_t offset = m_next_capability;
    COFFER_ASSERT(size >= 2 && offset + size <= k_conventional_config_size);
    set_config8(offset, static_cast<uint8_t>(id));
    if (m_last_capability == 0) {
        set_config8(CAPABILITIES_POINTER, static_cast<uint8_t>(offset));
        set_config16(STATUS, STATUS_CAPABILITIES);
    } else {
        set_config8(static_cast<uint16_t>(m_last_capability + 1), static_cast<uint8_t>(offset));
    }
    m_last_capability = offset;
    m_next_capability = static_cast<uint16_t>(align_up(uint64_t{offset} + size, 4));
    return offset;
}

void PciFunction::add_power_management() {
    m_power = add_capability(CapabilityId::PowerManagement, PM_SIZE);
    set_config16(static_cast<uint16_t>(m_power + PM_CAPABILITIES), 3); // version 1.2; D0 and D3 only, no PME
    // D1 and D2 are not offered; see config_write() for attempts at them.
    set_config16(static_cast<uint16_t>(m_power + PM_CONTROL), PM_NO_SOFT_RESET, PM_STATE);
}

void PciFunction::add_msi(unsigned messages) {
    COFFER_ASSERT(is_power_of_two(messages) && messages <= 32);
    m_msi = add_capability(CapabilityId::Msi, MSI_SIZE);
    auto capable = static_cast<uint16_t>(static_cast<unsigned>(std::countr_zero(messages)) << 1);
    set_config16(static_cast<uint16_t>(m_msi + MSI_CONTROL), static_cast<uint16_t>(MSI_64_BIT | capable),
                 MSI_ENABLE | MSI_MULTIPLE_ENABLE);
    set_config32(static_cast<uint16_t>(m_msi + MSI_ADDRESS), 0, 0xFFFF'FFFC);
    set_config32(static_cast<uint16_t>(m_msi + MSI_ADDRESS_HIGH), 0, 0xFFFF'FFFF);
    set_config16(static_cast<uint16_t>(m_msi + MSI_DATA), 0, 0xFFFF);
}

void PciFunction::add_msix(unsigned vectors, unsigned bar_index) {
    m_msix = std::make_unique<MsiX>(*this, vectors);
    add_memory_bar(bar_index, BarKind::Memory32, m_msix->region_size(), *m_msix);
    m_msix_capability = add_capability(CapabilityId::MsiX, MSIX_SIZE);
    set_config16(static_cast<uint16_t>(m_msix_capability + MSIX_CONTROL), static_cast<uint16_t>(vectors - 1),
                 MSIX_FUNCTION_MASK | MSIX_ENABLE);
    set_config32(static_cast<uint16_t>(m_msix_capability + MSIX_TABLE), bar_index);
    set_config32(static_cast<uint16_t>(m_msix_capability + MSIX_PBA), m_msix->pba_offset() | bar_index);
}

void PciFunction::add_express() {
    COFFER_ASSERT(m_config.size() == k_express_config_size);
    uint16_t offset = add_capability(CapabilityId::Express, EXPRESS_SIZE);
    set_config16(static_cast<uint16_t>(offset + EXPRESS_CAPABILITIES),
                 k_express_version_2 | k_express_root_complex_integrated);
    set_config32(static_cast<uint16_t>(offset + EXPRESS_DEVICE_CAPABILITIES), k_express_role_based_errors);
    // Reset value: relaxed ordering, no snoop, read requests of 512 bytes. Error reporting enables, ordering and sizes
    // are stored and change nothing here; FLR (bit 15) is not offered.
    set_config16(static_cast<uint16_t>(offset + EXPRESS_DEVICE_CONTROL), 0x2810, 0x78FF);
}

void PciFunction::config_read(uint16_t offset, MutBytes to) noexcept {
    fill_all_ones(to);
    // A conventional function behind ECAM has nothing past 256 bytes (PCIe 7.2.2).
    if (size_t{offset} + to.size() > m_config.size()) return;
    config_about_to_be_read(offset, to.size());
    std::memcpy(to.data(), m_config.data() + offset, to.size());
    if (intx_pin() && m_intx && offset <= STATUS && offset + to.size() > STATUS)
        to[size_t{STATUS} - offset] |= std::byte{STATUS_INTERRUPT};
}

void PciFunction::config_write(uint16_t offset, Bytes from) noexcept {
    if (size_t{offset} + from.size() > m_config.size()) return;
    Decodes old_decodes = decodes();
    bool old_intx = intx_asserted();
    bool old_masked = !msix_enabled() || msix_function_masked();
    uint16_t old_power = m_power != 0 ? config<uint16_t>(static_cast<uint16_t>(m_power + PM_CONTROL)) : uint16_t{0};
    for (size_t i = 0; i < from.size(); ++i) {
        size_t at = offset + i;
        m_config[at] = (m_config[at] & ~m_writable[at]) | (from[i] & m_writable[at]);
        m_config[at] &= ~(from[i] & m_write_one_to_clear[at]);
    }
    if (m_power != 0) {
        // PM 1.2, 3.2.4: a write of an unsupported state is completed, and the state stays.
        auto at = static_cast<uint16_t>(m_power + PM_CONTROL);
        auto state = static_cast<uint16_t>(config<uint16_t>(at) & PM_STATE);
        if (state != 0 && state != PM_STATE_D3_HOT) poke_config<uint16_t>(at, old_power);
    }
    config_written(offset, from.size());
    notify_after_change(old_decodes, old_intx, old_masked);
}

void PciFunction::config_about_to_be_read(uint16_t, size_t) noexcept {}

void PciFunction::config_written(uint16_t, size_t) noexcept {}

void PciFunction::notify_after_change(Decodes const& old_decodes, bool old_intx, bool old_masked) noexcept {
    if (m_upstream && decodes() != old_decodes) m_upstream->decode_changed(*this);
    if (m_upstream && intx_asserted() != old_intx) m_upstream->intx_changed(*this);
    if (m_msix && old_masked && msix_enabled() && !msix_function_masked()) m_msix->deliver_pending();
}

PciFunction::Decodes PciFunction::decodes() const noexcept {
    Decodes result;
    for (unsigned index = 0; index < k_bar_count; ++index) result[index] = bar_decode(index);
    return result;
}

std::optional<uint64_t> PciFunction::bar_decode(unsigned index) const noexcept {
    Bar const& bar = m_bars[index];
    auto offset = static_cast<uint16_t>(BAR0 + 4 * index);
    if (m_power != 0 && (config<uint16_t>(static_cast<uint16_t>(m_power + PM_CONTROL)) & PM_STATE) != 0)
        return std::nullopt;
    uint64_t address = 0;
    uint64_t last_in_space = 0xFFFF'FFFF;
    switch (bar.kind) {
    case BarKind::None:
    case BarKind::UpperHalf: return std::nullopt;
    case BarKind::Io:
        if ((command() & COMMAND_IO) == 0) return std::nullopt;
        address = config<uint32_t>(offset) & ~uint32_t{3};
        last_in_space = 0xFFFF;
        break;
    case BarKind::Memory32:
    case BarKind::Memory64:
        if ((command() & COMMAND_MEMORY) == 0) return std::nullopt;
        address = config<uint32_t>(offset) & ~uint32_t{15};
        if (bar.kind == BarKind::Memory64) {
            address |= uint64_t{config<uint32_t>(static_cast<uint16_t>(offset + 4))} << 32;
            last_in_space = ~uint64_t{0};
        }
        break;
    }
    if (address == 0 || address > last_in_space || bar.size - 1 > last_in_space - address) return std::nullopt;
    return address;
}

std::optional<unsigned> PciFunction::intx_pin() const noexcept {
    auto pin = config<uint8_t>(INTERRUPT_PIN);
    if (pin == 0) return std::nullopt;
    return pin - 1U;
}

bool PciFunction::intx_asserted() const noexcept {
    return m_intx && (command() & COMMAND_INTX_DISABLE) == 0;
}

void PciFunction::set_intx(bool asserted) noexcept {
    bool old = intx_asserted();
    m_intx = asserted;
    if (m_upstream && intx_asserted() != old) m_upstream->intx_changed(*this);
}

bool PciFunction::msi_enabled() const noexcept {
    return m_msi != 0 && (config<uint16_t>(static_cast<uint16_t>(m_msi + MSI_CONTROL)) & MSI_ENABLE) != 0;
}

bool PciFunction::msix_enabled() const noexcept {
    return m_msix_capability != 0 &&
           (config<uint16_t>(static_cast<uint16_t>(m_msix_capability + MSIX_CONTROL)) & MSIX_ENABLE) != 0;
}

bool PciFunction::msix_function_masked() const noexcept {
    return m_msix_capability != 0 &&
           (config<uint16_t>(static_cast<uint16_t>(m_msix_capability + MSIX_CONTROL)) & MSIX_FUNCTION_MASK) != 0;
}

bool PciFunction::messages_enabled() const noexcept {
    return msix_enabled() || msi_enabled();
}

bool PciFunction::signal_vector(unsigned vector) noexcept {
    if (msix_enabled()) {
        m_msix->trigger(vector);
        return true;
    }
    if (!msi_enabled()) return false;
    auto control = config<uint16_t>(static_cast<uint16_t>(m_msi + MSI_CONTROL));
    // 6.8.1.6: the function may change as many low bits of the data as messages were granted. Values past what it is
    // capable of are reserved, and taken as the most it is capable of.
    unsigned granted =
        std::min(static_cast<unsigned>(control & MSI_MULTIPLE_ENABLE) >> 4, static_cast<unsigned>(control >> 1) & 7U);
    uint32_t low = (1U << granted) - 1;
    uint64_t address = config<uint32_t>(static_cast<uint16_t>(m_msi + MSI_ADDRESS)) |
                       uint64_t{config<uint32_t>(static_cast<uint16_t>(m_msi + MSI_ADDRESS_HIGH))} << 32;
    uint32_t data = config<uint16_t>(static_cast<uint16_t>(m_msi + MSI_DATA));
    send_message(address, (data & ~low) | (vector & low));
    return true;
}

void PciFunction::send_message(uint64_t address, uint32_t data) noexcept {
    if (m_upstream && bus_master()) m_upstream->send_message(address, data);
}

void PciFunction::reset_pci() noexcept {
    Decodes old_decodes = decodes();
    bool old_intx = intx_asserted();
    m_config = m_reset;
    m_intx = false;
    if (m_msix) m_msix->reset();
    notify_after_change(old_decodes, old_intx, true);
}

PciState PciFunction::save_pci() const {
    PciState state;
    state.config = m_config;
    if (m_msix) {
        state.msix_table = m_msix->table();
        state.msix_pending = m_msix->pending();
    }
    state.intx = m_intx;
    return state;
}

Result<void> PciFunction::check_pci(PciState const& state) const {
    bool sizes = state.config.size() == m_config.size();
    sizes = sizes && (m_msix ? MsiX::sizes_match(*m_msix, state.msix_table, state.msix_pending)
                             : state.msix_table.empty() && state.msix_pending.empty());
    if (!sizes) return make_error(ErrorCode::Corrupt, "{}: saved PCI state is of another device", unit_name());
    if (load_le<uint32_t>(state.config, VENDOR_ID) != config<uint32_t>(VENDOR_ID))
        return make_error(ErrorCode::Corrupt, "{}: saved PCI state has another vendor or device id", unit_name());
    if (m_power != 0) {
        unsigned power = load_le<uint16_t>(state.config, size_t{m_power} + PM_CONTROL) & PM_STATE;
        if (power != 0 && power != PM_STATE_D3_HOT)
            return make_error(ErrorCode::Corrupt, "{}: saved PCI power state {} does not exist", unit_name(), power);
    }
    return {};
}

void PciFunction::restore_pci(PciState const& state) noexcept {
    Decodes old_decodes = decodes();
    bool old_intx = intx_asserted();
    for (size_t at = 0; at < m_config.size(); ++at)
        m_config[at] = (m_config[at] & ~m_writable[at]) | (state.config[at] & m_writable[at]);
    if (m_msix) m_msix->set_content(state.msix_table, state.msix_pending);
    m_intx = state.intx;
    // What was pending and masked stays so: the state holds no pending vector that is deliverable.
    if (m_upstream && decodes() != old_decodes) m_upstream->decode_changed(*this);
    if (m_upstream && intx_asserted() != old_intx) m_upstream->intx_changed(*this);
}

} // namespace coffer::devices
