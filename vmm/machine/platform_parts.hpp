// What a Platform is made of; for its own files alone.
#pragma once

#include <memory>
#include <vector>

#include "devices/chipset/cfi_flash.hpp"
#include "devices/chipset/cpu_hotplug.hpp"
#include "devices/chipset/fw_cfg.hpp"
#include "devices/chipset/hpet.hpp"
#include "devices/chipset/interrupt_fabric.hpp"
#include "devices/chipset/pit.hpp"
#include "devices/chipset/pm_block.hpp"
#include "devices/chipset/reset_control.hpp"
#include "devices/chipset/rtc.hpp"
#include "devices/chipset/uart16550.hpp"
#include "devices/pci/host_bridge.hpp"
#include "devices/pci/lpc_bridge.hpp"
#include "devices/pci/pci_host.hpp"
#include "devices/storage/nvme.hpp"
#include "devices/tpm/libtpms_backend.hpp"
#include "devices/tpm/ppi.hpp"
#include "devices/tpm/tis.hpp"
#include "devices/virtio/virtio_console.hpp"
#include "devices/virtio/virtio_rng.hpp"
#include "vmm/machine/platform.hpp"
#include "vmm/machine/tpm_pages.hpp"

namespace coffer::vmm {

struct Platform::Chipset {
    Chipset(Platform& platform, std::unique_ptr<devices::InterruptFabric> fabric);
    void hpet_replaces_legacy(Platform& platform, bool replaces);

    std::unique_ptr<devices::InterruptFabric> interrupts; // null: the backend's own
    std::unique_ptr<devices::LocalApicWindow> local_apics;
    std::unique_ptr<devices::Pit> pit;
    devices::FwCfg fw_cfg;
    devices::Uart16550 com1;
    devices::PmBlock pm;
    devices::Rtc rtc;
    devices::Hpet hpet;
    devices::CpuHotplug cpu_hotplug;
    devices::ResetControl reset_control;
    devices::SystemControlA system_control_a;
    devices::KeyboardReset keyboard_reset;
    devices::IgnoredPorts post_code;
    devices::IgnoredPorts io_delay;
};

struct Platform::Flash {
    Flash(Platform& owner, HostMapping code_content, HostMapping variable_content, GuestPhysAddr code_at,
          GuestPhysAddr variables_at);
    Result<void> map_array(HostMapping const& memory, GuestPhysAddr at, bool array);
    void mode_changed(HostMapping const& memory, GuestPhysAddr at, bool array) noexcept;

    Platform& platform;
    HostMapping code_memory;
    HostMapping variable_memory;
    FlashSaver saver;
    devices::CfiFlash code;
    devices::CfiFlash variables;
};

struct Platform::PciDevices {
    explicit PciDevices(Platform& platform);
    void place_pm(Platform& platform, std::optional<IoPort> base);

    devices::PciHost host;
    devices::HostBridge host_bridge;
    std::optional<IoPort> pm_base; // where the PM block is attached
    devices::LpcBridge lpc;
    std::vector<std::unique_ptr<devices::NvmeController>> disks;
    std::vector<std::string> boot_order;
    std::unique_ptr<devices::VirtioRng> rng;
    std::unique_ptr<devices::VirtioConsole> console;
};

struct Platform::TpmDevices {
    std::unique_ptr<devices::LibtpmsBackend> backend;
    std::unique_ptr<TpmPages> crb;
    std::unique_ptr<devices::TpmTis> tis;
    devices::TpmPpi ppi;
};

} // namespace coffer::vmm
