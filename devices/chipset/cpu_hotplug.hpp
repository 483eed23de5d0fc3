// The CPU hotplug register block as QEMU defines it (docs/specs/acpi_cpu_hotplug.rst), for a fixed set of CPUs. 12
// ports at 0xCD8. OVMF counts the possible CPUs with it (edk2 OvmfPkg PlatformInitLib,
// PlatformMaxCpuCountInitialization).
//
// Nothing is ever plugged: no CPU has an event, and control writes go nowhere. The mode of old with a bitmap of CPUs is
// not emulated.
#pragma once

#include "devices/core/device.hpp"

namespace coffer::devices {

class CpuHotplug final : public Device, public PioDevice {
public:
    static constexpr uint16_t k_ports = 12;

    // CPU `i` of `cpus` is present and has APIC ID `i`.
    explicit CpuHotplug(unsigned cpus) : m_cpus(cpus) {}

    IoStatus pio_read(uint16_t offset, MutBytes to) override;
    IoStatus pio_write(uint16_t offset, Bytes from) override;

    std::string_view unit_name() const noexcept override { return "cpu-hotplug"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    uint32_t m_cpus;
    uint32_t m_selected = 0; // may be no CPU's
    uint8_t m_command = 0;
};

} // namespace coffer::devices
