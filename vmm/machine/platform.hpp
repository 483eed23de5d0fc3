// Everything behind the vCPUs: buses, interrupt controllers, chipset, flash, PCI devices, TPM and firmware tables.
//
// Assembly is split by meaning: platform.cpp (construction, reset, firmware description), platform_chipset.cpp,
// platform_pci.cpp, platform_tpm.cpp, platform_state.cpp (saving and restoring).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "devices/core/backends.hpp"
#include "devices/core/bus.hpp"
#include "devices/core/device.hpp"
#include "firmware/machine_description.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/home/vm_config.hpp"
#include "vmm/machine/direct_kernel.hpp"
#include "vmm/machine/flash_saver.hpp"
#include "vmm/machine/io_dispatch.hpp"
#include "vmm/machine/io_loop.hpp"
#include "vmm/memory/guest_ram.hpp"
#include "vmm/snapshot/machine_state.hpp"

namespace coffer::vmm {

// What the owner's side brings: configuration, firmware, the home's stores, where bytes go. References outlive the
// platform.
struct PlatformConfig {
    VmConfig vm;
    std::optional<DirectKernel> kernel;
    ByteVector firmware_code;
    std::optional<HostMapping> firmware_memory; // in place of it, where the content came before
    ByteVector variables;                       // of a whole number of flash blocks
    devices::NvStore* variable_store = nullptr;

    struct Tpm {
        ByteVector state; // what the home holds
        devices::NvStore* store = nullptr;
    };
    std::optional<Tpm> tpm; // required where vm.tpm is not None

    std::vector<devices::BlockBackend*> disks; // one for each of vm.disks

    devices::ByteSink* serial = nullptr;
    std::function<void()> on_serial_room;    // serial_room() is no longer 0; I/O thread or vCPU, device lock held
    devices::ByteSink* agent = nullptr;      // null: no agent port
    std::function<void(bool)> on_agent_open; // the guest's agent opened or closed its end; device lock held
    std::function<void()> on_agent_room;     // agent_send() may take more; device lock held
};

class Platform final {
public:
    struct Parts {
        IoLoop& loop;
        GuestRam& ram;
        Partition& partition;
        devices::MachineControl& control;
    };
    static Result<std::unique_ptr<Platform>> create(PlatformConfig config, Parts parts);
    ~Platform();
    Platform(Platform const&) = delete;
    Platform& operator=(Platform const&) = delete;

    GuestIo& guest_io() noexcept { return m_io; }
    // Null where the backend has interrupt controllers of its own.
    devices::CpuInterrupts* cpu_interrupts(unsigned index) noexcept;

    // With the vCPUs paused, not under the device lock.
    void reset(devices::ResetKind kind) noexcept;
    // Everything that the guest was told is stored: UEFI variables now; TPM state always is. Not under the device lock.
    Result<void> flush();
    // Whether the guest wants its RAM wiped at this reset, and that it was.
    bool memory_overwrite_requested() const noexcept;
    void memory_was_overwritten() noexcept;

    // With the vCPUs stopped, not under the device lock. drain() returns when no disk and no TPM command is under way.
    Result<void> drain();
    // Any thread: what a machine that takes this one's state has to be like.
    SavedPlatform describe_for_saving() const;
    // Any thread: the code in flash, which does not change.
    Bytes firmware_code() const noexcept;
    // Platform's part of `state`: RAM, firmware and backend apart.
    Result<void> save(MachineState& state);
    // Nor does this with anything but the TPM: all PCRs of its active banks, by TPM_ALG_ID. InvalidArgument without a
    // TPM, Unsupported where the guest has not started it.
    Result<std::map<uint16_t, std::vector<ByteVector>>> read_pcrs();
    // Whether `state` is one of a platform like this; changes nothing.
    Result<void> check_fits(MachineState const& state) const;
    // Before the machine starts, after check_fits(), and never after an error. The flash content is what the platform
    // was made with. The real-time clock is restored apart, when virtual time has been stepped.
    Result<void> restore(MachineState const& state);
    Result<void> restore_clock(MachineState const& state);

    // Under the device lock.
    size_t serial_room() const noexcept;
    void serial_receive(Bytes bytes);
    size_t agent_send(Bytes bytes);
    void press_power_button() noexcept;

private:
    struct Chipset;
    struct PciDevices;
    struct TpmDevices;
    struct Flash;

    Platform(PlatformConfig config, Parts parts);
    Result<void> build();
    Result<void> build_interrupts();
    Result<void> build_chipset();
    Result<void> build_flash();
    Result<void> build_pci();
    Result<void> build_tpm();
    Result<void> build_firmware_items();
    firmware::MachineDescription describe() const;
    Result<void> restore_tpm(MachineState const& state);
    static Result<void> restore_unit(devices::Device& device, MachineState const& state);
    Result<void> attach(IoPort first, uint64_t length, devices::PioDevice& device);
    Result<void> attach(GuestPhysAddr first, uint64_t length, devices::MmioDevice& device);

    PlatformConfig m_config;
    Parts m_parts;
    devices::PioBus m_pio;
    devices::MmioBus m_mmio;
    IoDispatch m_io;
    devices::IrqSink* m_irqs = nullptr;
    devices::MsiSink* m_msis = nullptr;
    std::unique_ptr<Chipset> m_chipset;
    std::unique_ptr<Flash> m_flash;
    std::unique_ptr<PciDevices> m_pci;
    std::unique_ptr<TpmDevices> m_tpm;
    std::vector<devices::Device*> m_devices; // in reset and save order
};

} // namespace coffer::vmm
