// What every PCI function is: a configuration space with per-bit write rules, BARs, capabilities and interrupts.
// PCI Local Bus Specification 3.0; PCI Express Base Specification 4.0, 7.5.
//
// Thread rule: under the device lock, all of it.
//
// Not emulated: expansion ROM, VPD, AER, FLR, parity and system errors, CardBus, bridges (type 1 headers).
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string_view>

#include "base/bytes.hpp"
#include "devices/core/device.hpp"
#include "devices/pci/msix.hpp"
#include "devices/pci/pci_spec.hpp"
#include "devices/pci/pci_state.hpp"

namespace coffer::devices {

class PciFunction;

// What a function asks of the bus above it; implemented by PciHost.
class PciUpstream {
public:
    virtual ~PciUpstream() = default;
    // BARs moved, or decoding was switched on or off.
    virtual void decode_changed(PciFunction& function) noexcept = 0;
    virtual void intx_changed(PciFunction& function) noexcept = 0;
    virtual void send_message(uint64_t address, uint32_t data) noexcept = 0;
};

enum class BarKind : uint8_t { None, Io, Memory32, Memory64, UpperHalf };

struct PciIdentity {
    uint16_t vendor = 0;
    uint16_t device = 0;
    uint32_t class_code = 0; // base class, subclass, interface: 0x010802
    uint8_t revision = 0;
    uint16_t subsystem_vendor = 0;
    uint16_t subsystem = 0;
    uint8_t interrupt_pin = 0; // 0: none, 1: INTA# ...
    bool express = false;      // 4096 bytes of configuration space
};

class PciFunction : public Device {
public:
    explicit PciFunction(PciIdentity const& identity);

    PciFunction(PciFunction const&) = delete;
    PciFunction& operator=(PciFunction const&) = delete;

    // `offset` is below 4096, and the access of 1, 2 or 4 bytes lies within a doubleword.
    void config_read(uint16_t offset, MutBytes to) noexcept;
    void config_write(uint16_t offset, Bytes from) noexcept;

    struct Bar {
        BarKind kind = BarKind::None;
        uint64_t size = 0; // bytes, a power of two
        MmioDevice* memory = nullptr;
        PioDevice* io = nullptr;
    };
    Bar const& bar(unsigned index) const noexcept { return m_bars[index]; }
    // Where the BAR decodes now, or nothing: disabled by the command register or D3hot, never programmed (address 0),
    // or wrapping past the end of its space.
    std::optional<uint64_t> bar_decode(unsigned index) const noexcept;

    // 0-based INTx pin (0 = INTA#), where the function has one, and the level on it after COMMAND.InterruptDisable.
    std::optional<unsigned> intx_pin() const noexcept;
    bool intx_asserted() const noexcept;

    bool bus_master() const noexcept { return (command() & pci::COMMAND_BUS_MASTER) != 0; }
    bool msix_enabled() const noexcept;
    bool msix_function_masked() const noexcept;

    // Called by the bus when the function is put in a slot.
    void set_upstream(PciUpstream& upstream) noexcept { m_upstream = &upstream; }
    // Marks function 0 of a slot with more functions.
    void set_multifunction() noexcept;

    // A message on the bus, dropped while the function is no bus master.
    void send_message(uint64_t address, uint32_t data) noexcept;

protected:
    // Set-up, from constructors. Memory BARs are at least 16 bytes (4 KiB is kinder to guests), I/O BARs 4 to 256.
    void add_memory_bar(unsigned index, BarKind kind, uint64_t size, MmioDevice& target);
    void add_io_bar(unsigned index, uint64_t size, PioDevice& target);
    // Returns the capability's offset; its content after the two-byte header is zero and read-only.
    uint16_t add_capability(pci::CapabilityId id, uint16_t size);
    void add_power_management();
    // 64-bit capable; `messages` is 1, 2, 4 ... 32.
    void add_msi(unsigned messages);
    // The table takes a memory BAR of its own.
    void add_msix(unsigned vectors, unsigned bar_index);
    void add_express(); // root complex integrated endpoint
    // Sets reset values and which bits the guest may write.
    void set_config8(uint16_t offset, uint8_t value, uint8_t write_mask = 0);
    void set_config16(uint16_t offset, uint16_t value, uint16_t write_mask = 0);
    void set_config32(uint16_t offset, uint32_t value, uint32_t write_mask = 0);
    void set_write_one_to_clear16(uint16_t offset, uint16_t mask);

    template <class T>
    T config(uint16_t offset) const noexcept {
        return load_le<T>(m_config, offset);
    }
    // Run-time change of a register that the guest sees.
    template <class T>
    void poke_config(uint16_t offset, T value) noexcept {
        store_le<T>(m_config, offset, value);
    }

    // Changes which bits of a byte the guest may write, for registers that lock.
    void set_writable8(uint16_t offset, uint8_t mask) noexcept { m_writable[offset] = std::byte{mask}; }

    // Before the guest's read of `size` bytes at `offset`, for registers that are a window to something else.
    virtual void config_about_to_be_read(uint16_t offset, size_t size) noexcept;
    // After the guest's write of `size` bytes at `offset` took effect.
    virtual void config_written(uint16_t offset, size_t size) noexcept;

    // Raises vector `vector` by MSI-X or MSI; false where neither is enabled, and the device drives INTx instead.
    bool signal_vector(unsigned vector) noexcept;
    bool messages_enabled() const noexcept;
    void set_intx(bool asserted) noexcept;

    void reset_pci() noexcept;
    PciState save_pci() const;
    // Whether restore_pci() would take it; nothing changes.
    Result<void> check_pci(PciState const& state) const;
    // After check_pci(). Moves BARs and the INTx level.
    void restore_pci(PciState const& state) noexcept;

private:
    uint16_t command() const noexcept { return config<uint16_t>(pci::COMMAND); }
    bool msi_enabled() const noexcept;
    using Decodes = std::array<std::optional<uint64_t>, pci::k_bar_count>;
    Decodes decodes() const noexcept;
    void notify_after_change(Decodes const& old_decodes, bool old_intx, bool old_masked) noexcept;

    PciUpstream* m_upstream = nullptr;
    ByteVector m_config;
    ByteVector m_reset;
    ByteVector m_writable;
    ByteVector m_write_one_to_clear;
    std::array<Bar, pci::k_bar_count> m_bars;
    std::unique_ptr<MsiX> m_msix;
    uint16_t m_next_capability = pci::FIRST_CAPABILITY;
    uint16_t m_last_capability = 0;
    uint16_t m_power = 0; // offsets of capabilities, 0: absent
    uint16_t m_msi = 0;
    uint16_t m_msix_capability = 0;
    bool m_intx = false;
};

} // namespace coffer::devices
