// The chipset's devices under conformance.hpp.
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
#include "tests/conformance/conformance.hpp"
#include "tests/support/fakes.hpp"

namespace coffer::tests {
namespace {

void out(devices::PioDevice& device, unsigned offset, uint8_t value) {
    (void)device.pio_write(static_cast<uint16_t>(offset), object_bytes(value));
}
void store(devices::MmioDevice& device, uint64_t offset, uint32_t value) {
    (void)device.mmio_write(offset, object_bytes(value));
}

struct FabricSubject : Subject {
    ManualScheduler scheduler;
    devices::InterruptFabric fabric{
        2, scheduler, {1'000'000'000, [this] { return static_cast<uint64_t>(scheduler.now()); }}};
    void settle() override { scheduler.advance(k_ns_per_ms); }
};

struct PicSubject : FabricSubject {
    devices::Device& device() override { return fabric.pic(); }
    std::vector<Window> windows() override {
        return {Window::of(fabric.pic().master_ports(), 2), Window::of(fabric.pic().slave_ports(), 2),
                Window::of(fabric.pic().elcr_ports(), 2)};
    }
    void disturb() override {
        out(fabric.pic().master_ports(), 0, 0x11);
        for (auto value : std::to_array<uint8_t>({0x20, 0x04, 0x03, 0x21})) out(fabric.pic().master_ports(), 1, value);
        out(fabric.pic().slave_ports(), 0, 0x11);
        out(fabric.pic().slave_ports(), 1, 0x28);
        out(fabric.pic().elcr_ports(), 1, 0x08);
        fabric.set_line(11, true);
        fabric.set_line(4, true);
        out(fabric.pic().master_ports(), 0, 0xC3);
    }
};
COFFER_CONFORMANCE(Pic, PicSubject);

struct IoApicSubject : FabricSubject {
    devices::Device& device() override { return fabric.ioapic(); }
    std::vector<Window> windows() override { return {Window::of(fabric.ioapic(), 0x1000)}; }
    void disturb() override {
        store(fabric.local_apic(0), 0xF0, 0x1FF);
        store(fabric.ioapic(), 0x00, 0);
        store(fabric.ioapic(), 0x10, 0x0200'0000);
        store(fabric.ioapic(), 0x00, 0x10 + 2 * 17);
        store(fabric.ioapic(), 0x10, 0x8051);
        fabric.set_line(17, true);
    }
};
COFFER_CONFORMANCE(IoApic, IoApicSubject);

struct LocalApicSubject : FabricSubject {
    devices::Device& device() override { return fabric.local_apic(0); }
    std::vector<Window> windows() override { return {Window::of(fabric.local_apic(0), 0x1000)}; }
    void disturb() override {
        auto& apic = fabric.local_apic(0);
        for (auto [offset, value] : std::initializer_list<std::pair<uint64_t, uint32_t>>{{0xF0, 0x1FF},
                                                                                         {0xD0, 0x0100'0000},
                                                                                         {0xE0, 0x0FFF'FFFF},
                                                                                         {0x310, 0x0100'0000},
                                                                                         {0x370, 0xFE},
                                                                                         {0x3E0, 0x3},
                                                                                         {0x320, 0x2'0041},
                                                                                         {0x380, 100'000},
                                                                                         {0x300, 0x4'0005}})
            store(apic, offset, value);
        fabric.signal_msi(0xFEE0'0000, 0x0000'C071);
        (void)apic.acknowledge();
        fabric.signal_msi(0xFEE0'0000, 0x65);
        apic.write_cr8(5);
        store(apic, 0x280, 0);
        fabric.set_line(4, true);
    }
};
COFFER_CONFORMANCE(LocalApic, LocalApicSubject);

struct X2ApicSubject : FabricSubject {
    devices::Device& device() override { return fabric.local_apic(1); }
    std::vector<Window> windows() override { return {Window::of(fabric.local_apic(1), 0x1000)}; }
    void disturb() override {
        auto& apic = fabric.local_apic(1);
        (void)apic.write_apic_base(apic.read_apic_base() | 1U << 10);
        (void)apic.write_x2apic(0x80F, 0x1FF);
        (void)apic.write_x2apic(0x832, 0x4'0042);
        apic.write_tsc_deadline(123'456'789);
        (void)apic.write_x2apic(0x830, 0x2'0000'0055);
    }
};
COFFER_CONFORMANCE(X2Apic, X2ApicSubject);

struct PitSubject : Subject {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    devices::Pit pit{scheduler, devices::IrqLine(irqs, 0)};
    devices::Device& device() override { return pit; }
    std::vector<Window> windows() override {
        return {Window::of(pit.ports(), 4), Window::of(pit.system_control_b(), 1)};
    }
    void disturb() override {
        out(pit.ports(), 3, 0x34);
        out(pit.ports(), 0, 0x9C);
        out(pit.ports(), 0, 0x2E);
        out(pit.system_control_b(), 0, 0x0F);
        out(pit.ports(), 3, 0xB3);
        out(pit.ports(), 2, 0x34);
        out(pit.ports(), 2, 0x12);
        scheduler.advance(1'234'567);
        out(pit.ports(), 3, 0xC4 | 0x02);
        out(pit.ports(), 1, 0x77);
        pit.connect_irq0(false);
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
COFFER_CONFORMANCE(Pit, PitSubject);

struct UartSubject : Subject {
    FakeByteSink sink;
    FakeIrqSink irqs;
    devices::Uart16550 uart{"uart.0", sink, devices::IrqLine(irqs, 4)};
    devices::Device& device() override { return uart; }
    std::vector<Window> windows() override { return {Window::of(uart, 8)}; }
    void disturb() override {
        out(uart, 3, 0x83);
        out(uart, 0, 0x0C);
        out(uart, 3, 0x03);
        out(uart, 2, 0xC1);
        out(uart, 1, 0x0F);
        out(uart, 4, 0x1F);
        out(uart, 4, 0x0B);
        out(uart, 7, 0x77);
        uart.receive(as_bytes("0123456789abcdefghi"));
    }
};
COFFER_CONFORMANCE(Uart16550, UartSubject);

struct FwCfgSubject : Subject {
    FakeMemory memory{0x10000};
    devices::FwCfg fw_cfg{memory};
    FwCfgSubject() {
        EXPECT_TRUE(fw_cfg.add_file("etc/fixed", ByteVector(300, std::byte{3})));
        EXPECT_TRUE(fw_cfg.add_writable_file("etc/written", ByteVector(8), {}));
        EXPECT_TRUE(fw_cfg.add_built_file("etc/built", [] { return ByteVector(10, std::byte{4}); }));
    }
    devices::Device& device() override { return fw_cfg; }
    std::vector<Window> windows() override {
        return {Window::of(fw_cfg.io_ports(), 2), Window::of(fw_cfg.dma_ports(), 8)};
    }
    void disturb() override {
        MutBytes ram = memory.ram();
        store_be<uint32_t>(ram, 0, 0x21U << 16 | 0x08 | 0x10); // select and write
        store_be<uint32_t>(ram, 4, 5);
        store_be<uint64_t>(ram, 8, 0x100);
        ram[0x100] = std::byte{0xAB};
        (void)fw_cfg.dma_ports().pio_write(0, ByteVector(8));
        (void)fw_cfg.dma_ports().pio_write(0, object_bytes(uint32_t{0x0100'0000}));
    }
};
COFFER_CONFORMANCE(FwCfg, FwCfgSubject);

struct FlashSubject : Subject {
    ByteVector content = ByteVector(0x4000, std::byte{0xFF});
    devices::CfiFlash flash{"flash.vars", content, 0x1000, devices::FlashAccess::Writable, {}};
    devices::Device& device() override { return flash; }
    std::vector<Window> windows() override { return {Window::of(flash, content.size())}; }
    void disturb() override {
        for (auto value : std::to_array<uint8_t>({0x20, 0x00, 0x40}))
            (void)flash.mmio_write(0x123, object_bytes(value));
    }
};
COFFER_CONFORMANCE(CfiFlash, FlashSubject);

struct HpetSubject : Subject {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    devices::Hpet hpet{scheduler, irqs, {}};
    devices::Device& device() override { return hpet; }
    std::vector<Window> windows() override { return {Window::of(hpet, 0x400)}; }
    void disturb() override {
        for (auto [offset, value] : std::initializer_list<std::pair<uint64_t, uint32_t>>{{0x100, 0x14C},
                                                                                         {0x108, 100'000},
                                                                                         {0x108, 70'000},
                                                                                         {0x120, 5 << 9 | 0x06},
                                                                                         {0x128, 1'000},
                                                                                         {0x12C, 0},
                                                                                         {0x140, 12 << 9 | 0x44},
                                                                                         {0x10, 3}})
            store(hpet, offset, value);
        scheduler.advance(1'234'567);
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
COFFER_CONFORMANCE(Hpet, HpetSubject);

struct RtcSubject : Subject {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    devices::Rtc rtc{{.low_ram = 0x8000'0000,
                      .high_ram = 0x4000'0000,
                      .cpus = 2,
                      .utc = [this] { return 1'800'000'000 + scheduler.now() / k_ns_per_s; }},
                     scheduler,
                     devices::IrqLine(irqs, 8)};
    devices::Device& device() override { return rtc; }
    std::vector<Window> windows() override { return {Window::of(rtc, 4)}; }
    void set(uint8_t index, uint8_t value) {
        out(rtc, 0, index);
        out(rtc, 1, value);
    }
    void disturb() override {
        set(0x09, 0x11);
        set(0x01, 0x30);
        set(0x0F, 0x05);
        set(0x0B, 0x72);
        out(rtc, 2, 0x33);
        out(rtc, 3, 0x44);
        scheduler.advance(2'345'678'901);
        rtc.connect_irq8(false);
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
COFFER_CONFORMANCE(Rtc, RtcSubject);

struct StoppedRtcSubject : RtcSubject {
    void disturb() override {
        set(0x0B, 0x86);
        for (auto index : std::to_array<uint8_t>({0, 2, 4, 6, 7, 8, 9, 0x32})) set(index, 0xEE);
    }
};
COFFER_CONFORMANCE(StoppedRtc, StoppedRtcSubject);

struct PmSubject : Subject {
    ManualScheduler scheduler;
    FakeIrqSink irqs;
    FakeMachineControl machine;
    devices::PmBlock pm{scheduler, devices::IrqLine(irqs, 9), machine};
    devices::Device& device() override { return pm; }
    std::vector<Window> windows() override { return {Window::of(pm, 128), Window::of(pm.apm_ports(), 2)}; }
    void disturb() override {
        out(pm, 2, 0x21);
        out(pm, 3, 0x05);
        out(pm, 4, 0x02);
        out(pm, 0x2F, 0x99);
        out(pm, 0x31, 0x77);
        out(pm.apm_ports(), 1, 0x12);
        scheduler.advance(5 * k_ns_per_s);
        pm.press_power_button();
    }
    void settle() override { scheduler.advance(k_ns_per_ms); }
};
COFFER_CONFORMANCE(PmBlock, PmSubject);

template <class T>
struct OnePortSubject : Subject {
    FakeMachineControl machine;
    T port{machine};
    devices::Device& device() override { return port; }
    std::vector<Window> windows() override { return {Window::of(port, 1)}; }
    void disturb() override { out(port, 0, 0x05); }
};
COFFER_CONFORMANCE(ResetControl, OnePortSubject<devices::ResetControl>);
COFFER_CONFORMANCE(SystemControlA, OnePortSubject<devices::SystemControlA>);

struct CpuHotplugSubject : Subject {
    devices::CpuHotplug hotplug{2};
    devices::Device& device() override { return hotplug; }
    std::vector<Window> windows() override { return {Window::of(hotplug, devices::CpuHotplug::k_ports)}; }
    void disturb() override {
        (void)hotplug.pio_write(0, object_bytes(uint32_t{7}));
        out(hotplug, 5, 3);
    }
};
COFFER_CONFORMANCE(CpuHotplug, CpuHotplugSubject);

} // namespace
} // namespace coffer::tests
