// The firmware's two flash banks: variables below code, up to 4 GiB.
#include "vmm/layout.hpp"
#include "vmm/machine/platform_parts.hpp"

#include "base/log.hpp"

namespace coffer::vmm {

namespace {

constexpr size_t k_max_flash = size_t{16} << 20; // down to the local APIC's neighbourhood

Result<HostMapping> copy_of(Bytes content) {
    auto mapping = TRY(HostMapping::create(content.size()));
    std::memcpy(mapping.bytes().data(), content.data(), content.size());
    return mapping;
}

} // namespace

Result<void> Platform::build_flash() {
    auto code_memory = m_config.firmware_memory ? std::move(*m_config.firmware_memory) : HostMapping();
    Bytes const code = m_config.firmware_memory ? Bytes(code_memory.bytes()) : Bytes(m_config.firmware_code);
    Bytes const variables = m_config.variables;
    for (auto [bytes, what, file] : {std::tuple(code, "firmware code", &m_config.vm.firmware_code),
                                     std::tuple(variables, "variable store", &m_config.vm.firmware_variables)})
        if (bytes.empty() || bytes.size() % layout::k_flash_block != 0 || bytes.size() > k_max_flash)
            return make_error(ErrorCode::Corrupt, "the {} ({}) has {} bytes, which is no flash image", what, *file,
                              bytes.size());
    if (code.size() + variables.size() > k_max_flash)
        return make_error(ErrorCode::Corrupt, "firmware code and variables together are larger than {} MiB",
                          k_max_flash >> 20);
    GuestPhysAddr code_at{layout::k_flash_end - code.size()};
    GuestPhysAddr variables_at{code_at.value() - variables.size()};
    if (!m_config.firmware_memory) code_memory = TRY(copy_of(code));
    auto variable_memory = TRY(copy_of(variables));
    m_flash = std::make_unique<Flash>(*this, std::move(code_memory), std::move(variable_memory), code_at, variables_at);
    TRY(attach(code_at, code.size(), m_flash->code));
    TRY(attach(variables_at, variables.size(), m_flash->variables));
    TRY(m_flash->map_array(m_flash->code_memory, code_at, true));
    TRY(m_flash->map_array(m_flash->variable_memory, variables_at, true));
    m_devices.push_back(&m_flash->code);
    m_devices.push_back(&m_flash->variables);
    m_config.firmware_code.clear();
    m_config.firmware_memory.reset();
    m_config.variables.clear();
    return {};
}

Platform::Flash::Flash(Platform& owner, HostMapping code_content, HostMapping variable_content, GuestPhysAddr code_at,
                       GuestPhysAddr variables_at)
    : platform(owner), code_memory(std::move(code_content)), variable_memory(std::move(variable_content)),
      saver(owner.m_parts.loop, owner.m_parts.loop.device_lock(), *owner.m_config.variable_store,
            variable_memory.bytes()),
      code("flash-code", code_memory.bytes(), layout::k_flash_block, devices::FlashAccess::ReadOnly,
           {.on_mode = [this, code_at](bool array) { mode_changed(code_memory, code_at, array); }, .on_change = {}}),
      variables("flash-variables", variable_memory.bytes(), layout::k_flash_block, devices::FlashAccess::Writable,
                {.on_mode = [this, variables_at](bool array) { mode_changed(variable_memory, variables_at, array); },
                 .on_change = [this](uint64_t, uint64_t) { saver.changed(); }}) {}

Result<void> Platform::Flash::map_array(HostMapping const& memory, GuestPhysAddr at, bool array) {
    auto& partition = platform.m_parts.partition;
    if (!array) return partition.unmap(at);
    return partition.map({.gpa = at, .size = memory.bytes().size(), .host = memory.bytes().data(), .read_only = true});
}

void Platform::Flash::mode_changed(HostMapping const& memory, GuestPhysAddr at, bool array) noexcept {
    // While unmapped, reads and writes go to the device, which is right in either mode; only slower.
    if (auto done = map_array(memory, at, array); !done)
        log::error("cannot {} the flash at {:#x}: {}", array ? "map" : "unmap", at.value(), done.error().message());
}

} // namespace coffer::vmm
