// Interrupt controllers (where the backend has none of its own), timers, ports, fw_cfg and the ACPI PM block.
#include "vmm/layout.hpp"
#include "vmm/machine/platform_parts.hpp"
#include "vmm/machine/vcpu_threads.hpp"

#include "base/log.hpp"

namespace coffer::vmm {

Result<void> Platform::build_interrupts() {
    auto& partition = m_parts.partition;
    auto interrupts = std::unique_ptr<devices::InterruptFabric>();
    if (partition.capabilities().kernel_irqchip) {
        m_irqs = partition.irq_sink();
        m_msis = partition.msi_sink();
        m_chipset = std::make_unique<Chipset>(*this, nullptr);
        return {};
    }
    unsigned cpus = m_config.vm.cpus;
    interrupts = std::make_unique<devices::InterruptFabric>(
        cpus, m_parts.loop,
        devices::TscClock{.hz = partition.tsc_hz(), .guest_tsc = [&partition] { return partition.guest_tsc(); }});
    for (unsigned index = 0; index < cpus; ++index) interrupts->local_apic(index).connect(*partition.signals(index));
    m_irqs = interrupts.get();
    m_msis = interrupts.get();
    for (auto* unit : interrupts->units()) m_devices.push_back(unit);
    m_chipset = std::make_unique<Chipset>(*this, std::move(interrupts));
    auto& chipset = *m_chipset;
    TRY(attach(layout::k_pic_master, 2, chipset.interrupts->pic().master_ports()));
    TRY(attach(layout::k_pic_slave, 2, chipset.interrupts->pic().slave_ports()));
    TRY(attach(layout::k_elcr, 2, chipset.interrupts->pic().elcr_ports()));
    TRY(attach(layout::k_ioapic, layout::k_ioapic_size, chipset.interrupts->ioapic()));
    TRY(attach(layout::k_local_apic, layout::k_local_apic_page, *chipset.local_apics));
    TRY(attach(layout::k_pit, 4, chipset.pit->ports()));
    TRY(attach(layout::k_system_control_b, 1, chipset.pit->system_control_b()));
    m_devices.push_back(chipset.pit.get());
    return {};
}

Platform::Chipset::Chipset(Platform& platform, std::unique_ptr<devices::InterruptFabric> fabric)
    : interrupts(std::move(fabric)), fw_cfg(platform.m_parts.ram),
      com1("com1", *platform.m_config.serial, {*platform.m_irqs, layout::k_gsi_com1},
           [&platform] {
               if (platform.m_config.on_serial_room) platform.m_config.on_serial_room();
           }),
      pm(platform.m_parts.loop, {*platform.m_irqs, layout::k_gsi_sci}, platform.m_parts.control),
      rtc({.low_ram = platform.m_parts.ram.low_size(),
           .high_ram = platform.m_parts.ram.high_size(),
           .cpus = platform.m_config.vm.cpus,
           .utc_offset = 0,
           .utc = {}},
          platform.m_parts.loop, {*platform.m_irqs, layout::k_gsi_rtc}),
      hpet(platform.m_parts.loop, *platform.m_irqs,
           [this, &platform](bool replaces) { hpet_replaces_legacy(platform, replaces); }),
      cpu_hotplug(platform.m_config.vm.cpus), reset_control(platform.m_parts.control),
      system_control_a(platform.m_parts.control), keyboard_reset(platform.m_parts.control) {
    if (!interrupts) return;
    local_apics = std::make_unique<devices::LocalApicWindow>(*interrupts, [] { return current_vcpu(); });
    pit = std::make_unique<devices::Pit>(platform.m_parts.loop, devices::IrqLine(*platform.m_irqs, layout::k_gsi_pit));
}

void Platform::Chipset::hpet_replaces_legacy(Platform& platform, bool replaces) {
    rtc.connect_irq8(!replaces);
    if (pit) {
        pit->connect_irq0(!replaces);
    } else if (auto done = platform.m_parts.partition.set_hpet_legacy_routing(replaces); !done) {
        log::error("HPET legacy replacement: {}", done.error().message());
    }
}

Result<void> Platform::build_chipset() {
    auto& chipset = *m_chipset;
    TRY(attach(layout::k_rtc, 4, chipset.rtc));
    TRY(attach(layout::k_hpet, layout::k_hpet_size, chipset.hpet));
    TRY(attach(layout::k_cpu_hotplug, devices::CpuHotplug::k_ports, chipset.cpu_hotplug));
    TRY(attach(layout::k_system_control_a, 1, chipset.system_control_a));
    TRY(attach(layout::k_apm, 2, chipset.pm.apm_ports()));
    TRY(attach(layout::k_keyboard_command, 1, chipset.keyboard_reset));
    TRY(attach(layout::k_post_code, 1, chipset.post_code));
    TRY(attach(layout::k_io_delay, 1, chipset.io_delay));
    TRY(attach(layout::k_com1, 8, chipset.com1));
    TRY(attach(layout::k_fw_cfg, 2, chipset.fw_cfg.io_ports()));
    TRY(attach(layout::k_fw_cfg_dma, 8, chipset.fw_cfg.dma_ports()));
    for (devices::Device* device : std::initializer_list<devices::Device*>{
             &chipset.com1, &chipset.fw_cfg, &chipset.pm, &chipset.rtc, &chipset.hpet, &chipset.cpu_hotplug,
             &chipset.reset_control, &chipset.system_control_a})
        m_devices.push_back(device);

    namespace key = devices::fwcfg;
    auto& fw_cfg = chipset.fw_cfg;
    auto cpus = static_cast<uint16_t>(m_config.vm.cpus);
    fw_cfg.set_key_u16(key::NB_CPUS, cpus);
    fw_cfg.set_key_u16(key::MAX_CPUS, cpus);
    if (m_config.kernel) {
        auto& kernel = *m_config.kernel;
        fw_cfg.set_linux_boot(std::move(kernel.setup), std::move(kernel.kernel), std::move(kernel.initrd),
                              kernel.cmdline);
        m_config.kernel.reset();
    }
    return {};
}

Platform::PciDevices::PciDevices(Platform& platform)
    : host({.mmio = platform.m_mmio,
            .pio = platform.m_pio,
            .msi = *platform.m_msis,
            .reset_control = &platform.m_chipset->reset_control}),
      host_bridge({.low_ram_bytes = platform.m_parts.ram.low_size(),
                   .high_ram_bytes = platform.m_parts.ram.high_size(),
                   .on_pam = {}},
                  host),
      lpc({.irqs = *platform.m_irqs,
           .on_pm_base = [this, &platform](std::optional<IoPort> base) { place_pm(platform, base); },
           .on_rcba = {}}) {}

void Platform::PciDevices::place_pm(Platform& platform, std::optional<IoPort> base) {
    if (pm_base) platform.m_pio.detach(*pm_base);
    pm_base.reset();
    if (!base) return;
    // The guest chooses; a clash with another device is its own fault.
    if (auto placed = platform.m_pio.attach(*base, layout::k_pm_size, platform.m_chipset->pm); !placed)
        log::warning("the guest put the ACPI PM block where it cannot be: {}", placed.error().message());
    else
        pm_base = base;
}

size_t Platform::serial_room() const noexcept {
    return m_chipset->com1.room();
}
void Platform::serial_receive(Bytes bytes) {
    m_chipset->com1.receive(bytes);
}
void Platform::press_power_button() noexcept {
    m_chipset->pm.press_power_button();
}

} // namespace coffer::vmm
