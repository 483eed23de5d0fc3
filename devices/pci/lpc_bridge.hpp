// 00:1F.0, the LPC bridge of an ICH9 (Intel datasheet 316972-004, 13.1), as far as firmware and kernels program one:
// where the ACPI PM block and the root complex registers are, and PIRQ routing.
//
// PIRQ[A-H] drive GSI 16-23 always, and the ISA IRQ that PIRQx_ROUT names, wired-OR among PIRQs
// (interrupt_routing.hpp). SCI is IRQ 9 whatever ACPI_CNTL.SCI_IRQ_SEL says.
//
// Not emulated: SMI, GPIO, the decoding of LPC ranges (the devices behind it are always there), SPI, and the root
// complex registers themselves (the range is reported; reads give all ones unless the machine attaches something).
#pragma once

#include <functional>
#include <optional>

#include "base/strong.hpp"
#include "devices/core/irq.hpp"
#include "devices/pci/pci_function.hpp"
#include "devices/pci/pci_host.hpp"

namespace coffer::devices {

class LpcBridge final : public PciFunction, public PirqSink {
public:
    struct Config {
        IrqSink& irqs;
        // Called only when the answer changes: where the 128-byte PM block is, nothing while ACPI_CNTL disables it.
        std::function<void(std::optional<IoPort>)> on_pm_base;
        // The same for the 16 KiB of root complex registers.
        std::function<void(std::optional<GuestPhysAddr>)> on_rcba;
    };
    // Does not add itself to the host.
    explicit LpcBridge(Config config);

    std::string_view unit_name() const noexcept override { return "lpc-bridge"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    void set_pirq(unsigned pirq, bool asserted) noexcept override;

private:
    void config_written(uint16_t offset, size_t size) noexcept override;
    void report_bases() noexcept;
    void route_isa() noexcept;

    Config m_settings;
    std::array<bool, k_pirq_count> m_pirq_levels{};
    uint16_t m_isa_levels = 0; // the IRQs that this bridge holds asserted
    std::optional<IoPort> m_pm_base;
    std::optional<GuestPhysAddr> m_rcba;
};

} // namespace coffer::devices
