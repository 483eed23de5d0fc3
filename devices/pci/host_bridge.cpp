#include "devices/pci/host_bridge.hpp"

#include <algorithm>

#include "base/tagged.hpp"
#include "devices/pci/bridge_state.hpp"
#include "devices/pci/host_bridge_spec.hpp"

namespace coffer::devices {

using namespace q35;

namespace {
constexpr uint64_t k_mib = 1 << 20;

constexpr bool touches(uint16_t offset, size_t size, uint16_t first, size_t length) noexcept {
    return offset < first + length && first < offset + size;
}
} // namespace

HostBridge::HostBridge(Config config, PciHost& host)
    : PciFunction({.vendor = k_vendor, .device = k_device, .class_code = k_class, .revision = 2}),
      m_settings(std::move(config)), m_host(host) {
    set_config32(PCIEXBAR, static_cast<uint32_t>(k_pciexbar_reset), k_pciexbar_low_mask);
    set_config32(PCIEXBAR + 4, 0, k_pciexbar_high_mask);
    for (uint16_t index = 0; index < k_pam_count; ++index)
        set_config8(static_cast<uint16_t>(PAM0 + index), 0, index == 0 ? k_pam0_mask : k_pam_mask);
    set_config8(SMRAM, k_smram_reset, k_smram_writable);
    set_config8(ESMRAMC, k_esmramc_reset, k_esmramc_writable);
    uint64_t ram = m_settings.low_ram_bytes + m_settings.high_ram_bytes;
    uint64_t top = m_settings.high_ram_bytes != 0 ? 4096 * k_mib + m_settings.high_ram_bytes : m_settings.low_ram_bytes;
    set_config16(TOM, static_cast<uint16_t>(std::min<uint64_t>(ram / (64 * k_mib), 0x3FF)), 0x03FF);
    set_config16(TOUUD, static_cast<uint16_t>(std::min<uint64_t>(top / k_mib, 0xFFFF)), 0xFFFF);
    set_config16(TOLUD, static_cast<uint16_t>((m_settings.low_ram_bytes / k_mib) << 4), 0xFFF0);
}

// D_LCK makes SMRAM and ESMRAMC read-only until reset, and D_OPEN zero.
void HostBridge::apply_lock() noexcept {
    auto smram = config<uint8_t>(SMRAM);
    bool locked = (smram & k_smram_lock) != 0;
    if (locked) poke_config<uint8_t>(SMRAM, static_cast<uint8_t>(smram & ~0x40U));
    set_writable8(SMRAM, locked ? 0 : k_smram_writable);
    set_writable8(ESMRAMC, locked ? 0 : k_esmramc_writable);
}

void HostBridge::config_written(uint16_t offset, size_t size) noexcept {
    if (touches(offset, size, PCIEXBAR, 8)) place_ecam();
    if (touches(offset, size, SMRAM, 1)) apply_lock();
    if (!m_settings.on_pam) return;
    for (uint16_t index = 0; index < k_pam_count; ++index) {
        auto at = static_cast<uint16_t>(PAM0 + index);
        if (touches(offset, size, at, 1)) m_settings.on_pam(index, config<uint8_t>(at));
    }
}

void HostBridge::place_ecam() noexcept {
    auto low = config<uint32_t>(PCIEXBAR);
    unsigned length = (low & k_pciexbar_length) >> 1;
    if ((low & k_pciexbar_enable) == 0 || length == 3) {
        m_host.set_ecam(std::nullopt);
        return;
    }
    unsigned buses = 256U >> length;
    uint64_t base = uint64_t{config<uint32_t>(PCIEXBAR + 4)} << 32 | low;
    m_host.set_ecam(EcamWindow{GuestPhysAddr{align_down(base, buses * k_mib)}, buses});
}

void HostBridge::reset(ResetKind) noexcept {
    reset_pci();
    apply_lock();
    place_ecam();
}

Result<ByteVector> HostBridge::save() const {
    return encode_fields(BridgeState{save_pci()});
}

Result<void> HostBridge::restore(Bytes state) {
    BridgeState saved;
    TRY(decode_fields(state, saved));
    TRY(check_pci(saved.pci));
    set_writable8(SMRAM, k_smram_writable);
    set_writable8(ESMRAMC, k_esmramc_writable);
    restore_pci(saved.pci);
    apply_lock();
    place_ecam();
    return {};
}

} // namespace coffer::devices
