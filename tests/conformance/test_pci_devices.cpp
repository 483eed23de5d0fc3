#include "devices/virtio/virtio_console.hpp"
#include "devices/virtio/virtio_rng.hpp"
#include "tests/conformance/conformance.hpp"
#include "tests/support/nvme_rig.hpp"
#include "tests/support/pci_rig.hpp"
#include "tests/support/virtio_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;

// Configuration space as a window, so that hostile accesses reach it as they do through ECAM.
class ConfigWindow final : public MmioDevice {
public:
    explicit ConfigWindow(PciFunction& function) : m_function(function) {}
    IoStatus mmio_read(uint64_t offset, MutBytes to) override {
        if (!fits(offset, to.size())) return IoStatus::BadSize;
        m_function.config_read(static_cast<uint16_t>(offset), to);
        return IoStatus::Ok;
    }
    IoStatus mmio_write(uint64_t offset, Bytes from) override {
        if (!fits(offset, from.size())) return IoStatus::BadSize;
        m_function.config_write(static_cast<uint16_t>(offset), from);
        return IoStatus::Ok;
    }

private:
    static bool fits(uint64_t offset, size_t size) {
        return (size == 1 || size == 2 || size == 4) && offset % 4 + size <= 4;
    }
    PciFunction& m_function;
};

struct HostBridgeSubject : Subject {
    PciRig rig;
    HostBridge bridge{{.low_ram_bytes = 0x8000'0000, .high_ram_bytes = 0x8000'0000, .on_pam = {}}, rig.host};
    ConfigWindow config{bridge};
    HostBridgeSubject() { EXPECT_TRUE(rig.host.add(0, 0, bridge).has_value()); }
    Device& device() override { return bridge; }
    std::vector<Window> windows() override { return {Window::of(config, 4096)}; }
    void disturb() override {
        rig.config_write<uint32_t>(0, 0x60, 0xB000'0001);
        rig.config_write<uint8_t>(0, 0x91, 0x33);
        rig.config_write<uint8_t>(0, 0x9D, 0x1A);
        EXPECT_TRUE(rig.host.ecam());
    }
};
COFFER_CONFORMANCE(HostBridge, HostBridgeSubject);

struct LpcSubject : Subject {
    PciRig rig;
    ConfigWindow config{rig.lpc};
    Device& device() override { return rig.lpc; }
    std::vector<Window> windows() override { return {Window::of(config, 4096)}; }
    void disturb() override {
        rig.config_write<uint32_t>(31, 0x40, 0x600);
        rig.config_write<uint8_t>(31, 0x44, 0x80);
        rig.config_write<uint32_t>(31, 0x60, 0x0B0B0A0A);
        rig.config_write<uint16_t>(31, 0xA0, 0x10);
        rig.config_write<uint32_t>(31, 0xF0, 0xFED1'C001);
        EXPECT_TRUE(rig.pm_base && rig.rcba);
    }
};
COFFER_CONFORMANCE(LpcBridge, LpcSubject);

struct PciHostSubject : Subject {
    PciRig rig;
    Device& device() override { return rig.host; }
    std::vector<Window> windows() override {
        return {Window::of(static_cast<PioDevice&>(rig.host), 8),
                Window::of(static_cast<MmioDevice&>(rig.host), 256 << 20)};
    }
    void disturb() override { rig.out<uint32_t>(0xCF8, 0x8000'F844); }
};
COFFER_CONFORMANCE(PciHost, PciHostSubject);

// With an I/O queue pair, commands under way that a missing bus master bit holds back, and features changed.
struct NvmeSubject : Subject, NvmeRig {
    ConfigWindow config{nvme};
    Device& device() override { return nvme; }
    std::vector<Window> windows() override {
        return {Window::of(static_cast<MmioDevice&>(nvme), nvme::k_registers_size), Window::of(config, 4096)};
    }
    void disturb() override {
        rig.config_write<uint32_t>(k_slot, 0x10, k_bar);
        rig.enable(k_slot);
        start();
        EXPECT_EQ(create_queues(1), 0);
        auto feature = command(nvme::SET_FEATURES);
        feature.cdw10 = nvme::VOLATILE_WRITE_CACHE;
        EXPECT_EQ(run(0, feature), 0);
        feature.cdw10 = 0x7F;
        EXPECT_NE(run(0, feature), 0);
        EXPECT_EQ(run(1, transfer(nvme::READ, 0, 1, 0x40'0000)), 0);
        auto event = command(nvme::ASYNC_EVENT);
        put(0, event);
        ring(0);
        for (unsigned i = 0; i < 9; ++i) {
            put(1, transfer(nvme::READ, i, 1, 0x40'0000));
            ring(1);
            nvme.drain();
        }
        write32(nvme::INTMS, 2);
        nvme.drain();
    }
    void settle() override {
        nvme.drain();
        scheduler.run_tasks();
        nvme.drain();
    }
};
COFFER_CONFORMANCE(Nvme, NvmeSubject);

// A driver that is up, and requests held back.
struct RngSubject : Subject {
    PciRig rig;
    FakeMemory memory{1 << 20};
    ManualScheduler scheduler;
    VirtioRng rng{"virtio-rng.0", memory, scheduler};
    VirtioDriver driver{rig, memory, 6, 0x1'0000};
    ConfigWindow config{rng};
    RngSubject() { EXPECT_TRUE(rig.host.add(6, 0, rng).has_value()); }
    Device& device() override { return rng; }
    std::vector<Window> windows() override {
        return {Window::of(static_cast<MmioDevice&>(rng), VirtioPci::k_region_size), Window::of(config, 4096)};
    }
    void disturb() override {
        driver.probe();
        rig.enable_msix(6, 2, VirtioDriver::k_msix, 0x40);
        driver.start(virtio::F_VERSION_1, 1, true);
        driver.offer_input(0, 0, 64);
        driver.notify(0);
        driver.offer_input(0, 1, 64);
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
COFFER_CONFORMANCE(VirtioRng, RngSubject);

// A driver that is up and gives the control queue no buffers, so that messages wait.
struct ConsoleSubject : Subject {
    PciRig rig;
    FakeMemory memory{1 << 20};
    ManualScheduler scheduler;
    FakeByteSink sink;
    VirtioConsole console{
        {.port_name = "org.coffer.agent.0", .sink = sink, .on_guest_open = {}, .on_writable = {}}, memory, scheduler};
    VirtioDriver driver{rig, memory, 7, 0x1'0000};
    ConfigWindow config{console};
    ConsoleSubject() { EXPECT_TRUE(rig.host.add(7, 0, console).has_value()); }
    Device& device() override { return console; }
    std::vector<Window> windows() override {
        return {Window::of(static_cast<MmioDevice&>(console), VirtioPci::k_region_size), Window::of(config, 4096)};
    }
    void disturb() override {
        driver.probe();
        driver.start(virtio::F_VERSION_1 | virtio::F_CONSOLE_MULTIPORT, 6);
        driver.send(3, 0, object_bytes(virtio::ConsoleControl{0xFFFF'FFFF, virtio::CONSOLE_DEVICE_READY, 1}));
        driver.send(3, 1, object_bytes(virtio::ConsoleControl{1, virtio::CONSOLE_PORT_READY, 1}));
        driver.send(3, 2, object_bytes(virtio::ConsoleControl{1, virtio::CONSOLE_PORT_OPEN, 1}));
        EXPECT_TRUE(console.guest_open());
    }
    void settle() override { scheduler.run_tasks(); }
};
COFFER_CONFORMANCE(VirtioConsole, ConsoleSubject);

} // namespace
} // namespace coffer::tests
