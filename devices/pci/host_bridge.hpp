// 00:00.0, the memory controller of a Q35 (Intel datasheet 316966-002, 5.1), as far as firmware programs one: PCIEXBAR
// places the ECAM window, PAM and SMRAM registers hold what is written.
//
// Not emulated: SMM and its memory (TSEG reads as 0 MiB; SMRAM and ESMRAMC store bits that hide nothing), and PAM's
// effect: RAM from 0xC0000 to 0xFFFFF is RAM to reads and writes at all times. The callback tells of PAM writes.
#pragma once

#include <functional>

#include "devices/pci/pci_function.hpp"
#include "devices/pci/pci_host.hpp"

namespace coffer::devices {

class HostBridge final : public PciFunction {
public:
    struct Config {
        uint64_t low_ram_bytes = 0;  // below 4 GiB, what TOLUD says at reset
        uint64_t high_ram_bytes = 0; // from 4 GiB up
        // `index` 0..6, the register's new value. May be empty.
        std::function<void(unsigned index, uint8_t value)> on_pam;
    };
    // Does not add itself to the host.
    HostBridge(Config config, PciHost& host);

    std::string_view unit_name() const noexcept override { return "host-bridge"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    void config_written(uint16_t offset, size_t size) noexcept override;
    void place_ecam() noexcept;
    void apply_lock() noexcept;

    Config m_settings;
    PciHost& m_host;
};

} // namespace coffer::devices
