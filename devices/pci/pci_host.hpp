// The root complex: configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2) on ports 0xCF8-0xCFF, the
// ECAM window (PCI Express Base Specification 4.0, 7.2.2), and the decoding of BARs. Bus 0 is a flat set of functions;
// other buses answer all ones.
//
// A BAR that overlaps something else on the bus is left unmapped (reads give all ones) and logged; it is tried again
// whenever another range is let go.
//
// Thread rule: under the device lock. Functions are not owned and outlive their last access; there is no hot-plug.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "devices/core/bus.hpp"
#include "devices/core/device.hpp"
#include "devices/core/irq.hpp"
#include "devices/pci/interrupt_routing.hpp"
#include "devices/pci/pci_function.hpp"

namespace coffer::devices {

// Where PIRQ[A-H] levels go; implemented by the LPC bridge.
class PirqSink {
public:
    virtual ~PirqSink() = default;
    // 0..7; called only when the wired-OR level changes.
    virtual void set_pirq(unsigned pirq, bool asserted) noexcept = 0;
};

struct EcamWindow {
    GuestPhysAddr base;
    unsigned buses = 0; // 64, 128 or 256; a bus takes 1 MiB
    bool operator==(EcamWindow const&) const = default;
};

class PciHost final : public Device, public PioDevice, public MmioDevice, private PciUpstream {
public:
    struct Wiring {
        MmioBus& mmio;
        PioBus& pio;
        MsiSink& msi;
        // Port 0xCF9 lies inside this device's range: byte accesses there go to offset 0 of this device.
        PioDevice* reset_control = nullptr;
    };
    explicit PciHost(Wiring const& wiring);

    // Attaches ports 0xCF8-0xCFF. Once, when the machine is put together.
    Result<void> connect();
    void set_pirq_sink(PirqSink& sink) noexcept { m_pirqs = &sink; }
    // Refuses a slot that is taken. `device` 0..31, `function` 0..7.
    Result<void> add(unsigned device, unsigned function, PciFunction& target);
    // Called by the host bridge as PCIEXBAR changes; nothing: no window.
    void set_ecam(std::optional<EcamWindow> window) noexcept;
    std::optional<EcamWindow> ecam() const noexcept { return m_ecam; }

    std::string_view unit_name() const noexcept override { return "pci-host"; }
    // CONFIG_ADDRESS only: the functions are reset as devices of their own.
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;
    // The ECAM window.
    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

private:
    static constexpr unsigned k_functions = 8;
    struct Slot {
        PciFunction* target = nullptr;
        // Where each BAR is attached now.
        std::array<std::optional<uint64_t>, pci::k_bar_count> mapped;
    };

    void decode_changed(PciFunction& function) noexcept override;
    void intx_changed(PciFunction& function) noexcept override;
    void send_message(uint64_t address, uint32_t data) noexcept override;

    PciFunction* function_at(unsigned bus, unsigned device_function) const noexcept;
    PciFunction* addressed() const noexcept;
    void unmap(Slot& slot) noexcept;
    void map_missing() noexcept;
    void map_ecam() noexcept;

    Wiring m_wiring;
    PirqSink* m_pirqs = nullptr;
    std::array<Slot, k_pci_slots * k_functions> m_slots;
    std::array<bool, k_pirq_count> m_pirq_levels{};
    std::optional<EcamWindow> m_ecam;        // as programmed
    std::optional<EcamWindow> m_mapped_ecam; // as attached
    uint32_t m_config_address = 0;
};

} // namespace coffer::devices
