#include "devices/pci/lpc_bridge.hpp"

#include "base/tagged.hpp"
#include "devices/pci/bridge_state.hpp"
#include "devices/pci/lpc_bridge_spec.hpp"

namespace coffer::devices {

using namespace ich9;

namespace {
constexpr uint16_t rout_register(unsigned pirq) noexcept {
    return static_cast<uint16_t>(pirq < 4 ? PIRQA_ROUT + pirq : PIRQE_ROUT + (pirq - 4));
}
} // namespace

LpcBridge::LpcBridge(Config config)
    : PciFunction({.vendor = k_vendor, .device = k_device, .class_code = k_class, .revision = 2}),
      m_settings(std::move(config)) {
    // 13.1.3: I/O, memory and bus master enables read 1 and cannot be cleared.
    set_config16(pci::COMMAND, pci::COMMAND_IO | pci::COMMAND_MEMORY | pci::COMMAND_BUS_MASTER,
                 pci::COMMAND_PARITY | pci::COMMAND_SERR);
    set_config32(PMBASE, 1, k_pmbase_mask);
    set_config8(ACPI_CNTL, 0, k_acpi_cntl_writable);
    set_config32(GPIOBASE, 1);
    for (unsigned pirq = 0; pirq < k_pirq_count; ++pirq)
        set_config8(rout_register(pirq), k_pirq_reset, k_pirq_disabled | k_pirq_irq);
    set_config8(SIRQ_CNTL, 0x10, 0xFF);
    set_config16(LPC_IO_DECODE, 0, 0x1377);
    set_config16(LPC_ENABLES, 0, 0x3F0F);
    set_config16(GEN_PMCON_1, 0, k_smi_lock);
    set_config32(RCBA, 0, k_rcba_mask | k_rcba_enable);
}

void LpcBridge::config_written(uint16_t, size_t) noexcept {
    // SMI_LOCK stays until reset (13.8.1.1).
    if ((config<uint16_t>(GEN_PMCON_1) & k_smi_lock) != 0) set_writable8(GEN_PMCON_1, 0);
    report_bases();
    route_isa();
}

void LpcBridge::report_bases() noexcept {
    std::optional<IoPort> pm_base;
    auto port = static_cast<uint16_t>(config<uint32_t>(PMBASE) & k_pmbase_mask);
    if ((config<uint8_t>(ACPI_CNTL) & k_acpi_enable) != 0 && port != 0) pm_base = IoPort{port};
    if (pm_base != m_pm_base) {
        m_pm_base = pm_base;
        if (m_settings.on_pm_base) m_settings.on_pm_base(pm_base);
    }
    std::optional<GuestPhysAddr> rcba;
    auto value = config<uint32_t>(RCBA);
    if ((value & k_rcba_enable) != 0 && (value & k_rcba_mask) != 0) rcba = GuestPhysAddr{value & k_rcba_mask};
    if (rcba != m_rcba) {
        m_rcba = rcba;
        if (m_settings.on_rcba) m_settings.on_rcba(rcba);
    }
}

void LpcBridge::set_pirq(unsigned pirq, bool asserted) noexcept {
    COFFER_ASSERT(pirq < k_pirq_count);
    m_pirq_levels[pirq] = asserted;
    m_settings.irqs.set_line(gsi_of_pirq(pirq), asserted);
    route_isa();
}

void LpcBridge::route_isa() noexcept {
    uint16_t levels = 0;
    for (unsigned pirq = 0; pirq < k_pirq_count; ++pirq) {
        auto route = config<uint8_t>(rout_register(pirq));
        if (!m_pirq_levels[pirq] || (route & k_pirq_disabled) != 0) continue;
        levels = static_cast<uint16_t>(levels | (1U << (route & k_pirq_irq)));
    }
    levels &= k_pirq_legal;
    auto changed = static_cast<uint16_t>(levels ^ m_isa_levels);
    m_isa_levels = levels;
    for (unsigned irq = 0; irq < k_isa_irqs; ++irq)
        if ((changed >> irq & 1U) != 0) m_settings.irqs.set_line(irq, (levels >> irq & 1U) != 0);
}

void LpcBridge::reset(ResetKind) noexcept {
    set_writable8(GEN_PMCON_1, k_smi_lock);
    reset_pci();
    report_bases();
    route_isa();
}

Result<ByteVector> LpcBridge::save() const {
    return encode_fields(BridgeState{save_pci()});
}

Result<void> LpcBridge::restore(Bytes state) {
    BridgeState saved;
    TRY(decode_fields(state, saved));
    TRY(check_pci(saved.pci));
    set_writable8(GEN_PMCON_1, k_smi_lock);
    restore_pci(saved.pci);
    config_written(0, 0);
    return {};
}

} // namespace coffer::devices
