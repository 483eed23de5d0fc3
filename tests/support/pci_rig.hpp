// A PCI bus on its own, as tests of PCI functions drive it: through configuration ports and the MMIO bus.
#pragma once

#include <gtest/gtest.h>

#include "devices/pci/host_bridge.hpp"
#include "devices/pci/lpc_bridge.hpp"
#include "devices/pci/pci_host.hpp"
#include "tests/support/fakes.hpp"

namespace coffer::tests {

struct PciRig {
    devices::MmioBus mmio;
    devices::PioBus pio;
    FakeMsiSink msi;
    FakeIrqSink irqs;
    devices::PciHost host{{.mmio = mmio, .pio = pio, .msi = msi}};
    std::optional<IoPort> pm_base;
    std::optional<GuestPhysAddr> rcba;
    devices::LpcBridge lpc{{.irqs = irqs,
                            .on_pm_base = [this](std::optional<IoPort> port) { pm_base = port; },
                            .on_rcba = [this](std::optional<GuestPhysAddr> base) { rcba = base; }}};

    PciRig() {
        EXPECT_TRUE(host.connect().has_value());
        EXPECT_TRUE(host.add(31, 0, lpc).has_value());
        host.set_pirq_sink(lpc);
    }

    template <class T = uint32_t>
    T in(uint16_t port) {
        ByteVector bytes(sizeof(T), std::byte{0xFF});
        auto hit = pio.find(IoPort{port}, sizeof(T));
        if (hit && hit->target->pio_read(hit->offset, bytes) != devices::IoStatus::Ok) fill_all_ones(bytes);
        return load_le<T>(bytes);
    }
    template <class T = uint32_t>
    void out(uint16_t port, T value) {
        if (auto hit = pio.find(IoPort{port}, sizeof(T)))
            (void)hit->target->pio_write(hit->offset, object_bytes(value));
    }
    template <class T = uint32_t>
    T config_read(unsigned device, unsigned offset, unsigned function = 0, unsigned bus = 0) {
        out(0xCF8, static_cast<uint32_t>(0x8000'0000U | bus << 16 | device << 11 | function << 8 | (offset & 0xFC)));
        return in<T>(static_cast<uint16_t>(0xCFC + (offset & 3)));
    }
    template <class T = uint32_t>
    void config_write(unsigned device, unsigned offset, T value, unsigned function = 0) {
        out(0xCF8, static_cast<uint32_t>(0x8000'0000U | device << 11 | function << 8 | (offset & 0xFC)));
        out<T>(static_cast<uint16_t>(0xCFC + (offset & 3)), value);
    }
    template <class T = uint32_t>
    T read(uint64_t address) {
        ByteVector bytes(sizeof(T), std::byte{0xFF});
        auto hit = mmio.find(GuestPhysAddr{address}, sizeof(T));
        if (hit && hit->target->mmio_read(hit->offset, bytes) != devices::IoStatus::Ok) fill_all_ones(bytes);
        return load_le<T>(bytes);
    }
    template <class T = uint32_t>
    devices::IoStatus write(uint64_t address, T value) {
        auto hit = mmio.find(GuestPhysAddr{address}, sizeof(T));
        if (!hit) return devices::IoStatus::NoSuchRegister;
        return hit->target->mmio_write(hit->offset, object_bytes(value));
    }
    // The capability's offset, or 0. `skip` passes over earlier ones of the same kind.
    unsigned find_capability(unsigned device, uint8_t id, unsigned skip = 0) {
        unsigned at = config_read<uint8_t>(device, 0x34);
        for (unsigned hops = 0; at != 0 && hops < 48; ++hops) {
            if (config_read<uint8_t>(device, at) == id && skip-- == 0) return at;
            at = config_read<uint8_t>(device, at + 1);
        }
        return 0;
    }
    // Decoding and bus mastering on.
    void enable(unsigned device) { config_write<uint16_t>(device, 0x04, 0x0007); }
    // Points every MSI-X vector at data `first_data` + vector, unmasked; the table's BAR is placed at `table`.
    void enable_msix(unsigned device, unsigned vectors, uint32_t table, uint32_t first_data) {
        unsigned capability = find_capability(device, 0x11);
        ASSERT_NE(capability, 0U);
        unsigned bar = config_read(device, capability + 4) & 7;
        config_write(device, 0x10 + 4 * bar, table);
        enable(device);
        for (unsigned vector = 0; vector < vectors; ++vector) {
            ASSERT_EQ(write<uint32_t>(table + 16 * vector, 0xFEE0'0000), devices::IoStatus::Ok);
            ASSERT_EQ(write<uint32_t>(table + 16 * vector + 4, 0), devices::IoStatus::Ok);
            ASSERT_EQ(write<uint32_t>(table + 16 * vector + 8, first_data + vector), devices::IoStatus::Ok);
            ASSERT_EQ(write<uint32_t>(table + 16 * vector + 12, 0), devices::IoStatus::Ok);
        }
        config_write<uint16_t>(device, capability + 2, 0x8000);
    }
};

} // namespace coffer::tests
