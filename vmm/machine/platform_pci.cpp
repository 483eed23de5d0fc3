// Bus 0: host and LPC bridges, a disk controller for each disk, the agent's console and the random number source.
#include "base/agent_protocol.hpp"
#include "firmware/items.hpp"
#include "vmm/layout.hpp"
#include "vmm/machine/platform_parts.hpp"

namespace coffer::vmm {

namespace {

// Slots of bus 0. Disks come first, so that the firmware and Linux number them in the order given.
constexpr unsigned k_first_disk_slot = 1;
constexpr unsigned k_rng_slot = 0x1C;
constexpr unsigned k_console_slot = 0x1D;
constexpr unsigned k_lpc_slot = 0x1F;
static_assert(k_first_disk_slot + k_max_disks <= k_rng_slot);

} // namespace

Result<void> Platform::build_pci() {
    auto& loop = m_parts.loop;
    m_pci = std::make_unique<PciDevices>(*this);
    auto& host = m_pci->host;
    TRY(host.connect());
    host.set_pirq_sink(m_pci->lpc);
    m_devices.push_back(&host);
    auto add = [&](unsigned slot, devices::PciFunction& function) -> Result<void> {
        TRY(host.add(slot, 0, function));
        m_devices.push_back(&function);
        return {};
    };
    TRY(add(0, m_pci->host_bridge));
    TRY(add(k_lpc_slot, m_pci->lpc));

    COFFER_ASSERT(m_config.disks.size() == m_config.vm.disks.size());
    for (size_t index = 0; index < m_config.disks.size(); ++index) {
        // The namespace's identifier is the VM's with the disk's number in its last byte: stable, and one of a kind.
        auto nguid = m_config.vm.uuid.bytes();
        nguid.back() ^= static_cast<std::byte>(index);
        auto name = fmt::format("nvme.{}", index);
        auto controller = std::make_unique<devices::NvmeController>(
            devices::NvmeController::Config{.unit = name, .serial = fmt::format("coffer-{}", index), .nguid = nguid},
            *m_config.disks[index], m_parts.ram, loop);
        auto slot = k_first_disk_slot + static_cast<unsigned>(index);
        TRY(add(slot, *controller));
        m_pci->boot_order.push_back(firmware::nvme_boot_path(static_cast<uint8_t>(slot), 0));
        m_pci->disks.push_back(std::move(controller));
    }

    m_pci->rng = std::make_unique<devices::VirtioRng>("virtio-rng.0", m_parts.ram, loop);
    TRY(add(k_rng_slot, *m_pci->rng));
    if (m_config.agent) {
        m_pci->console = std::make_unique<devices::VirtioConsole>(
            devices::VirtioConsole::Config{.unit = "virtio-console.0",
                                           .port_name = agent::k_port_name,
                                           .sink = *m_config.agent,
                                           .on_guest_open = m_config.on_agent_open,
                                           .on_writable = m_config.on_agent_room},
            m_parts.ram, loop);
        TRY(add(k_console_slot, *m_pci->console));
    }
    return {};
}

size_t Platform::agent_send(Bytes bytes) {
    return m_pci->console ? m_pci->console->send(bytes) : 0;
}

} // namespace coffer::vmm
