// Saving and restoring what is behind the vCPUs.
#include <algorithm>
#include <set>

#include "vmm/machine/controllers.hpp"
#include "vmm/machine/platform_parts.hpp"
#include "vmm/snapshot/machine_state.hpp"

namespace coffer::vmm {

namespace {

ByteVector copy_of(Bytes bytes) {
    return {bytes.begin(), bytes.end()};
}

Result<SavedUnit> save_unit(devices::Device const& device) {
    auto saved = device.save();
    if (!saved) return std::move(saved).error().with_context(device.unit_name());
    return SavedUnit{std::string(device.unit_name()), *std::move(saved)};
}

} // namespace

SavedPlatform Platform::describe_for_saving() const {
    SavedPlatform saved;
    saved.memory = m_config.vm.memory;
    saved.cpus = m_config.vm.cpus;
    saved.tpm = static_cast<uint8_t>(m_config.vm.tpm);
    saved.agent = m_config.agent != nullptr;
    for (auto const* disk : m_config.disks) saved.disk_sizes.push_back(disk->size());
    return saved;
}

Bytes Platform::firmware_code() const noexcept {
    return m_flash->code_memory.bytes();
}

Result<void> Platform::drain() {
    std::lock_guard lock(m_parts.loop.device_lock());
    for (auto& disk : m_pci->disks) disk->drain();
    for (auto* disk : m_config.disks) TRY(disk->flush());
    // The front ends' save() waits for the running command; what it says is not wanted yet.
    if (m_tpm && m_tpm->crb) {
        m_tpm->crb->device().look();
        TRY(m_tpm->crb->device().save());
    }
    if (m_tpm && m_tpm->tis) TRY(m_tpm->tis->save());
    return {};
}

Result<void> Platform::save(MachineState& state) {
    TRY(drain());
    std::lock_guard lock(m_parts.loop.device_lock());
    state.platform = describe_for_saving();
    state.variables = copy_of(m_flash->variable_memory.bytes());
    state.units.clear();
    for (auto* device : m_devices) state.units.push_back(TRY(save_unit(*device)));
    if (!m_tpm) return {};
    // So that the home has the same.
    TRY(m_tpm->backend->make_durable());
    state.tpm_permanent = TRY(m_tpm->backend->permanent_state());
    state.tpm_volatile = TRY(m_tpm->backend->volatile_state());
    return {};
}

Result<void> Platform::check_fits(MachineState const& state) const {
    if (!(state.platform == describe_for_saving()))
        return make_error(ErrorCode::Unsupported,
                          "the saved machine does not fit the VM's configuration (memory, CPUs, TPM, or the number and "
                          "sizes of its disks): undo the change, or drop the saved state");
    std::set<std::string_view> offered;
    for (auto const& unit : state.units)
        if (!offered.insert(unit.name).second)
            return make_error(ErrorCode::Corrupt, "the saved machine has the unit '{}' twice", unit.name);
    for (auto* device : m_devices)
        if (offered.erase(device->unit_name()) == 0)
            return make_error(ErrorCode::Unsupported, "the saved machine lacks the unit '{}'", device->unit_name());
    // What the backend holds here is not the platform's to check.
    if (m_parts.partition.capabilities().kernel_irqchip)
        std::erase_if(offered, [](std::string_view name) { return is_controller_unit(name); });
    if (!offered.empty())
        return make_error(ErrorCode::Unsupported, "the saved machine has a unit '{}', which this one lacks",
                          *offered.begin());
    return {};
}

Result<void> Platform::restore_tpm(MachineState const& state) {
    if (!m_tpm) return {};
    // The power-on of the front end's reset is behind the thread before the TPM is taken from under it.
    TRY(drain());
    std::lock_guard lock(m_parts.loop.device_lock());
    TRY_CONTEXT(m_tpm->backend->restore(state.tpm_permanent, state.tpm_volatile),
                "the saved state of the TPM cannot be loaded");
    return {};
}

Result<void> Platform::restore(MachineState const& state) {
    TRY(restore_tpm(state));
    std::lock_guard lock(m_parts.loop.device_lock());
    for (auto* device : m_devices)
        if (device != &m_chipset->rtc) TRY(restore_unit(*device, state));
    return {};
}

Result<void> Platform::restore_clock(MachineState const& state) {
    std::lock_guard lock(m_parts.loop.device_lock());
    return restore_unit(m_chipset->rtc, state);
}

Result<void> Platform::restore_unit(devices::Device& device, MachineState const& state) {
    auto unit = std::ranges::find(state.units, device.unit_name(), &SavedUnit::name);
    COFFER_ASSERT(unit != state.units.end());
    auto restored = device.restore(unit->state);
    if (!restored) return std::move(restored).error().with_context(fmt::format("saved unit '{}'", unit->name));
    return {};
}

} // namespace coffer::vmm
