#include "vmm/machine/platform.hpp"

#include <algorithm>

#include "base/log.hpp"
#include "firmware/items.hpp"
#include "firmware/ovmf_layout.hpp"
#include "vmm/layout.hpp"
#include "vmm/machine/platform_parts.hpp"

namespace coffer::vmm {

Platform::Platform(PlatformConfig config, Parts parts)
    : m_config(std::move(config)), m_parts(parts), m_io(parts.loop.device_lock(), m_pio, m_mmio) {}

Platform::~Platform() {
    // The saver's thread and the timers of devices end before the loop that they use.
    m_flash.reset();
    std::lock_guard lock(m_parts.loop.device_lock());
    m_devices.clear();
}

Result<std::unique_ptr<Platform>> Platform::create(PlatformConfig config, Parts parts) {
    std::unique_ptr<Platform> platform(new Platform(std::move(config), parts));
    TRY(platform->build());
    return platform;
}

Result<void> Platform::build() {
    TRY(build_interrupts());
    TRY(build_chipset());
    TRY(build_flash());
    TRY(build_pci());
    TRY(build_tpm());
    TRY(build_firmware_items());
    reset(devices::ResetKind::Cold);
    return {};
}

Result<void> Platform::attach(IoPort first, uint64_t length, devices::PioDevice& device) {
    return m_pio.attach(first, length, device);
}

Result<void> Platform::attach(GuestPhysAddr first, uint64_t length, devices::MmioDevice& device) {
    return m_mmio.attach(first, length, device);
}

void Platform::reset(devices::ResetKind kind) noexcept {
    std::lock_guard lock(m_parts.loop.device_lock());
    for (auto* device : m_devices) device->reset(kind);
}

firmware::MachineDescription Platform::describe() const {
    firmware::MachineDescription machine;
    machine.name = m_config.vm.name;
    auto uuid = m_config.vm.uuid.bytes();
    std::copy(uuid.begin(), uuid.end(), machine.uuid.begin());
    machine.low_ram_size = m_parts.ram.low_size();
    machine.high_ram_size = m_parts.ram.high_size();
    machine.cpu_count = m_config.vm.cpus;
    // The firmware places these; the tables are asked for after it has.
    if (auto ecam = m_pci->host.ecam()) machine.ecam_base = ecam->base.value();
    machine.pci_window32 = {machine.ecam_base + firmware::k_ecam_size,
                            layout::k_pci_window_end.value() - (machine.ecam_base + firmware::k_ecam_size)};
    auto& partition = m_parts.partition;
    auto vendor = partition.guest_cpuid(0, 0).ebx;
    constexpr uint32_t k_genu = 0x756E6547;
    constexpr uint32_t k_auth = 0x68747541;
    constexpr uint32_t k_page_1g = 1U << 26;
    firmware::CpuAddressing addressing{.vendor = vendor == k_genu   ? firmware::CpuVendor::Intel
                                                 : vendor == k_auth ? firmware::CpuVendor::Amd
                                                                    : firmware::CpuVendor::Other,
                                       .physical_bits = static_cast<uint8_t>(partition.physical_address_bits()),
                                       .has_1g_pages = (partition.guest_cpuid(0x8000'0001, 0).edx & k_page_1g) != 0};
    uint64_t ram_end = machine.high_ram_size > 0 ? layout::k_high_ram.value() + machine.high_ram_size : 0;
    machine.pci_window64 = firmware::ovmf_pci_window64(addressing, ram_end);
    machine.tpm.kind = m_config.vm.tpm == TpmKind::Crb ? firmware::TpmKind::Crb
                       : is_fifo(m_config.vm.tpm)      ? firmware::TpmKind::Tis
                                                       : firmware::TpmKind::None;
    machine.tpm.base = layout::k_tpm.value();
    machine.tpm.ppi_base = layout::k_tpm_ppi.value();
    if (is_fifo(m_config.vm.tpm)) machine.tpm.gsi = layout::k_gsi_tpm_tis;
    machine.reserved.push_back({layout::k_kvm_identity_map.value(), layout::k_kvm_reserved_size});
    machine.boot_order = m_pci->boot_order;
    return machine;
}

Result<void> Platform::build_firmware_items() {
    auto& fw_cfg = m_chipset->fw_cfg;
    // Made once here, so that a description that no table can say is an error at start and not in the guest.
    for (auto& item : TRY(firmware::build_firmware_items(describe()))) {
        TRY(fw_cfg.add_built_file(item.name, [this, name = item.name]() -> ByteVector {
            auto items = firmware::build_firmware_items(describe());
            if (!items) {
                log::error("firmware tables: {}", items.error().message());
                return {};
            }
            auto found = std::ranges::find(*items, name, &firmware::FirmwareItem::name);
            return found == items->end() ? ByteVector{} : std::move(found->bytes);
        }));
    }
    return {};
}

Result<void> Platform::flush() {
    return m_flash->saver.flush();
}

devices::CpuInterrupts* Platform::cpu_interrupts(unsigned index) noexcept {
    return m_chipset->interrupts ? &m_chipset->interrupts->local_apic(index) : nullptr;
}

} // namespace coffer::vmm
