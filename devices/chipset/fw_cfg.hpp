// The firmware configuration device: named blobs for firmware and kernel. Source: see fw_cfg_spec.hpp.
//
// Ports: io_ports() at 0x510 (2), dma_ports() at 0x514 (8).
// Items are added before the guest runs. Not emulated: writes by the data port (the interface dropped them).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "devices/chipset/fw_cfg_spec.hpp"
#include "devices/chipset/port_face.hpp"
#include "devices/core/guest_memory.hpp"

namespace coffer::devices {

class FwCfg final : public Device {
    IoStatus io_read(uint16_t offset, MutBytes to);
    IoStatus io_write(uint16_t offset, Bytes from);
    IoStatus dma_read(uint16_t offset, MutBytes to);
    IoStatus dma_write(uint16_t offset, Bytes from);

public:
    // Makes an item's bytes. Called when the guest reads the directory and whenever it selects the item, so that the
    // bytes can follow what the guest did to the machine (PCI windows). The size is fixed by the first call after a
    // reset: later bytes are filled up with zeros, and where they grew the former bytes stay and it is logged.
    using Builder = std::function<ByteVector()>;
    // The guest changed a writable item: its whole content.
    using OnWrite = std::function<void(Bytes content)>;

    explicit FwCfg(GuestMemory& memory);

    PioDevice& io_ports() noexcept { return m_io_ports; }
    PioDevice& dma_ports() noexcept { return m_dma_ports; }

    // Refused: an empty name, one above 55 characters, or one that exists; too many files.
    Result<void> add_file(std::string_view name, ByteVector content);
    Result<void> add_built_file(std::string_view name, Builder builder);
    // Of fixed size; a reset brings back the first content.
    Result<void> add_writable_file(std::string_view name, ByteVector content, OnWrite on_write);
    // An item that is known by number (fwcfg::Key); one set before is replaced.
    void set_key(uint16_t key, ByteVector content);
    void set_key_u16(uint16_t key, uint16_t value);
    void set_key_u32(uint16_t key, uint32_t value);
    // The items of a direct kernel boot: the two parts of a bzImage, an initrd (may be empty) and the command line.
    void set_linux_boot(ByteVector setup, ByteVector kernel, ByteVector initrd, std::string_view command_line);

    // What a guest reads from an item now; empty where there is none. For tests and tools.
    ByteVector content(std::string_view name);

    std::string_view unit_name() const noexcept override { return "fw_cfg"; }
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

private:
    struct Item {
        std::string name; // empty: known by number alone
        ByteVector content;
        Builder builder;
        bool built = false;
        bool writable = false;
        bool written = false;
        ByteVector initial; // of a writable item
        OnWrite on_write;
    };

    Result<void> add(Item item);
    void build(Item& item);
    void build_directory();
    void select(uint16_t key);
    Item* selected() noexcept;
    void run_dma(GuestPhysAddr descriptor);
    bool transfer(uint32_t control, uint32_t length, GuestPhysAddr address);
    bool read_to_guest(Item const* item, uint32_t length, GuestPhysAddr to);
    bool write_from_guest(Item* item, uint32_t length, GuestPhysAddr from);

    // Glue
    GuestMemory& m_memory;
    PortFace<FwCfg, &FwCfg::io_read, &FwCfg::io_write> m_io_ports{*this};
    PortFace<FwCfg, &FwCfg::dma_read, &FwCfg::dma_write> m_dma_ports{*this};

    // Static configuration, but for what is built or written
    std::map<uint16_t, Item> m_items;
    std::map<std::string, uint16_t, std::less<>> m_keys; // of files, by name

    // Volatile state
    uint16_t m_key = 0;
    uint32_t m_offset = 0;
    uint32_t m_dma_high = 0;
};

} // namespace coffer::devices
