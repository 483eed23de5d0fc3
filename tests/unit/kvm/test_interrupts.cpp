// Interrupts through KVM's controllers, several vCPUs, and eventfds on both ends.
#include <algorithm>
#include <array>

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>

#include "base/file.hpp"
#include "devices/core/irq.hpp"
#include "tests/unit/kvm/micro_guest.hpp"

namespace coffer::tests {
namespace {

using namespace std::chrono_literals;

constexpr uint8_t k_pic_base = 0x20;

UniqueFd make_eventfd() {
    UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    COFFER_ASSERT(fd.valid());
    return fd;
}

uint64_t take_count(UniqueFd const& fd) {
    uint64_t count = 0;
    return ::read(fd.get(), &count, sizeof count) == sizeof count ? count : 0;
}

void signal(UniqueFd const& fd) {
    uint64_t one = 1;
    COFFER_ASSERT(::write(fd.get(), &one, sizeof one) == sizeof one);
}

bool wait_readable(UniqueFd const& fd) {
    pollfd entry{fd.get(), POLLIN, 0};
    return ::poll(&entry, 1, 5000) == 1;
}

// 8259s at vectors 0x20 and 0x28, all lines open; then tells port 0x81 and waits.
void load_pic_guest(MicroGuest& guest, uint8_t line) {
    auto vector = static_cast<uint16_t>((k_pic_base + line) * 4);
    store_le<uint32_t>(guest.ram.bytes(), vector, 0x2000);  // real-mode vector 0000:2000
    load(guest.ram, 0x2000, {
        0xB0, 0x99, 0xE6, 0x80,  // mov al, 0x99; out 0x80, al
        0xB0, 0x20, 0xE6, 0x20,  // mov al, 0x20; out 0x20, al: end of interrupt
        0xE6, 0xA0,              // out 0xA0, al
        0xCF,                    // iret
    });
    guest.enter(real_mode, {
        0xFA,                                            // cli
        0xB0, 0x11, 0xE6, 0x20, 0xE6, 0xA0,              // ICW1
        0xB0, k_pic_base, 0xE6, 0x21,                    // ICW2
        0xB0, k_pic_base + 8, 0xE6, 0xA1,
        0xB0, 0x04, 0xE6, 0x21, 0xB0, 0x02, 0xE6, 0xA1,  // ICW3
        0xB0, 0x01, 0xE6, 0x21, 0xE6, 0xA1,              // ICW4
        0xB0, 0x00, 0xE6, 0x21, 0xE6, 0xA1,              // OCW1: nothing masked
        0xE6, 0x81,                                      // out 0x81, al
        0xFB, 0xF4,                                      // sti; hlt
        0xE6, 0xF4,                                      // out 0xF4, al
    });
}

TEST(KvmInterrupts, PicLinesWakeAHaltedCpu) {
    SKIP_WITHOUT_KVM();
    for (uint8_t line : std::array<uint8_t, 2>{4, 9}) {
        MicroGuest guest;
        load_pic_guest(guest, line);
        std::thread device;
        guest.io.on_access = [&](Access const& access) {
            if (access.address == 0x81)
                device = std::thread([&] {
                    std::this_thread::sleep_for(20ms);
                    devices::IrqLine(*guest.partition->irq_sink(), line).pulse();
                });
            guest.stop_at_end(access);
        };
        guest.run_to_end();
        device.join();
        EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{0x99}) << "line " << int{line};
    }
}

TEST(KvmInterrupts, ThePitTicks) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load_pic_guest(guest, 0);
    // Before the end of set-up: channel 0, mode 2, every 0x1000 clocks (3.4 ms).
    load(guest.ram, k_code + 0x100, {0xB0, 0x34, 0xE6, 0x43, 0xB0, 0x00, 0xE6, 0x40, 0xB0, 0x10, 0xE6, 0x40,
                                     0xE9, 0xF1, 0xFE});  // jmp k_code
    auto state = must(guest.cpu().get_state());
    state.rip = k_code + 0x100;
    must(guest.cpu().set_state(state));
    guest.run_to_end();
    EXPECT_FALSE(guest.io.writes(0x80).empty());
    // Ports of the kernel's devices never reach ours.
    for (uint64_t port : std::array<uint64_t, 6>{0x20, 0x21, 0xA0, 0xA1, 0x40, 0x43}) EXPECT_TRUE(guest.io.writes(port).empty()) << port;
}

TEST(KvmInterrupts, HpetLegacyRoutingStopsThePitsLine) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    must(guest.partition->set_hpet_legacy_routing(true));
    load_pic_guest(guest, 0);
    load(guest.ram, k_code + 0x100, {0xB0, 0x34, 0xE6, 0x43, 0xB0, 0x00, 0xE6, 0x40, 0xB0, 0x10, 0xE6, 0x40,
                                     0xE9, 0xF1, 0xFE});
    auto state = must(guest.cpu().get_state());
    state.rip = k_code + 0x100;
    must(guest.cpu().set_state(state));
    std::thread kicker([&] {
        while (guest.io.writes(0x81).empty()) std::this_thread::sleep_for(1ms);
        std::this_thread::sleep_for(60ms);  // some twenty periods
        guest.cpu().kick();
    });
    auto exit = guest.run();
    kicker.join();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(guest.io.writes(0x81).size(), 1u);
    EXPECT_TRUE(guest.io.writes(0x80).empty());
    EXPECT_FALSE(guest.ended);
}

// Protected mode with the local APIC on and a gate at vector 0x41; says so on port 0x81 and halts.
void load_apic_guest(MicroGuest& guest) {
    load(guest.ram, 0x3000 + 0x41 * 8, {0x00, 0x20, k_code32, 0x00, 0x00, 0x8E, 0x00, 0x00});
    load(guest.ram, 0x2000, {
        0xB0, 0x41, 0xE6, 0x80,                                      // mov al, 0x41; out 0x80, al
        0xC7, 0x05, 0xB0, 0x00, 0xE0, 0xFE, 0x00, 0x00, 0x00, 0x00,  // mov dword [0xFEE000B0], 0: EOI
        0xE6, 0xF4,                                                  // out 0xF4, al
    });
    load(guest.ram, k_code, {
        0xC7, 0x05, 0xF0, 0x00, 0xE0, 0xFE, 0xFF, 0x01, 0x00, 0x00,  // mov dword [0xFEE000F0], 0x1FF: SVR
        0xE6, 0x81,                                                  // out 0x81, al
        0xFB, 0xF4,                                                  // sti; hlt
    });
    auto state = protected_mode(must(guest.cpu().get_state()));
    state.idtr = {0x3000, 0x7FF};
    must(guest.cpu().set_state(state));
}

TEST(KvmInterrupts, MessageSignalled) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load_apic_guest(guest);
    guest.io.on_access = [&](Access const& access) {
        if (access.address == 0x81) guest.partition->msi_sink()->signal_msi(0xFEE00000, 0x41);
        guest.stop_at_end(access);
    };
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{0x41});
}

TEST(KvmInterrupts, AnMsiToNowhereIsHarmless) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.partition->msi_sink()->signal_msi(0xFEE55000, 0x41);
    guest.partition->msi_sink()->signal_msi(0, 0);
    guest.partition->irq_sink()->set_line(4000, true);
    guest.enter(real_mode, {0xE6, 0xF4});
    guest.run_to_end();
}

TEST(KvmInterrupts, EventfdRaisesAnMsi) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load_apic_guest(guest);
    auto* channels = guest.partition->event_channels();
    ASSERT_NE(channels, nullptr);
    auto trigger = make_eventfd();
    unsigned gsi = must(channels->add_msi_route(0xFEE00000, 0x55));
    EXPECT_GE(gsi, 24u);
    must(channels->update_msi_route(gsi, 0xFEE00000, 0x41));
    must(channels->attach_interrupt(gsi, trigger.get()));
    guest.io.on_access = [&](Access const& access) {
        if (access.address == 0x81) signal(trigger);
        guest.stop_at_end(access);
    };
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{0x41});
    must(channels->detach_interrupt(gsi, trigger.get()));
    must(channels->remove_msi_route(gsi));
    EXPECT_FALSE(channels->remove_msi_route(gsi));
    EXPECT_FALSE(channels->update_msi_route(gsi, 0xFEE00000, 0x41));
    EXPECT_EQ(must(channels->add_msi_route(0xFEE00000, 0x42)), gsi);
}

TEST(KvmInterrupts, ALevelEventfdIsResampledAtTheEndOfInterrupt) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load_pic_guest(guest, 5);
    // ELCR: line 5 is level-triggered.
    load(guest.ram, k_code + 0x100, {0xB0, 0x20, 0xBA, 0xD0, 0x04, 0xEE, 0xE9, 0xF7, 0xFE});  // out; jmp k_code
    auto state = must(guest.cpu().get_state());
    state.rip = k_code + 0x100;
    must(guest.cpu().set_state(state));
    auto trigger = make_eventfd(), resample = make_eventfd();
    must(guest.partition->event_channels()->attach_interrupt(5, trigger.get(), resample.get()));
    guest.io.on_access = [&](Access const& access) {
        if (access.address == 0x81) signal(trigger);
        guest.stop_at_end(access);
    };
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{0x99});
    EXPECT_TRUE(wait_readable(resample));
    must(guest.partition->event_channels()->detach_interrupt(5, trigger.get()));
}

TEST(KvmInterrupts, DoorbellsSignalWithoutAnExit) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    auto* channels = guest.partition->event_channels();
    auto any = make_eventfd(), matching = make_eventfd(), port = make_eventfd();
    vmm::Doorbell const any_bell{true, k_mmio, 0, std::nullopt};
    vmm::Doorbell const match_bell{true, k_mmio + 0x10, 4, 7};
    vmm::Doorbell const port_bell{false, 0x600, 2, std::nullopt};
    must(channels->attach_doorbell(any_bell, any.get()));
    must(channels->attach_doorbell(match_bell, matching.get()));
    must(channels->attach_doorbell(port_bell, port.get()));
    EXPECT_FALSE(channels->attach_doorbell(match_bell, matching.get()));  // twice
    guest.enter(protected_mode, {
        0xB8, 0x07, 0x00, 0x00, 0x00,              // mov eax, 7
        0xA3, 0x00, 0x00, 0xB0, 0xFE,              // mov [k_mmio], eax
        0xA3, 0x10, 0x00, 0xB0, 0xFE,              // mov [k_mmio + 0x10], eax
        0x40,                                      // inc eax
        0xA3, 0x10, 0x00, 0xB0, 0xFE,              // mov [k_mmio + 0x10], eax: another value
        0x66, 0xBA, 0x00, 0x06, 0x66, 0xEF,        // mov dx, 0x600; out dx, ax
        0xE6, 0xF4,                                // out 0xF4, al
    });
    guest.run_to_end();
    EXPECT_EQ(take_count(any), 1u);
    EXPECT_EQ(take_count(matching), 1u);
    EXPECT_EQ(take_count(port), 1u);
    EXPECT_TRUE(guest.io.writes(k_mmio).empty());
    EXPECT_EQ(guest.io.writes(k_mmio + 0x10), std::vector<uint64_t>{8});
    EXPECT_TRUE(guest.io.writes(0x600).empty());
    must(channels->detach_doorbell(any_bell, any.get()));
    must(channels->detach_doorbell(match_bell, matching.get()));
    must(channels->detach_doorbell(port_bell, port.get()));
    EXPECT_FALSE(channels->detach_doorbell(port_bell, port.get()));
}

TEST(KvmInterrupts, InitAndSipiStartOtherCpus) {
    SKIP_WITHOUT_KVM();
    constexpr unsigned k_count = 3;
    MicroGuest guest(k_count);
    // At 0x8000, where SIPI vector 8 points: each counts itself in and says its APIC id (CPUID 1.EBX[31:24]).
    load(guest.ram, 0x8000, {
        0x66, 0xB8, 0x01, 0x00, 0x00, 0x00, 0x0F, 0xA2,  // mov eax, 1; cpuid
        0x66, 0xC1, 0xEB, 0x18, 0x88, 0xD8, 0xE6, 0x90,  // shr ebx, 24; mov al, bl; out 0x90, al
        0xF0, 0x2E, 0xFE, 0x06, 0x00, 0x01,              // lock inc byte cs:[0x100]
        0xFA, 0xF4, 0xEB, 0xFD,                          // cli; hlt; jmp to hlt
    });
    guest.enter(protected_mode, {
        0xC7, 0x05, 0x00, 0x03, 0xE0, 0xFE, 0x00, 0xC5, 0x0C, 0x00,  // ICR: INIT to all but self
        0xC7, 0x05, 0x00, 0x03, 0xE0, 0xFE, 0x08, 0xC6, 0x0C, 0x00,  // ICR: SIPI 0x08
        0x80, 0x3D, 0x00, 0x81, 0x00, 0x00, k_count - 1,             // again: cmp byte [0x8100], k_count - 1
        0xF3, 0x90, 0x75, 0xF5,                                      // pause; jne again
        0xE6, 0xF4,                                                  // out 0xF4, al
    });
    std::vector<std::thread> threads;
    std::vector<Result<vmm::VcpuExit>> exits(k_count, Result<vmm::VcpuExit>(vmm::VcpuExit::TripleFault));
    for (unsigned i = 1; i < k_count; ++i) threads.emplace_back([&, i] { exits[i] = guest.cpu(i).run(); });
    guest.run_to_end();
    for (auto& thread : threads) thread.join();
    auto ids = guest.io.writes(0x90);
    std::ranges::sort(ids);
    EXPECT_EQ(ids, (std::vector<uint64_t>{1, 2}));
    for (unsigned i = 1; i < k_count; ++i) {
        ASSERT_TRUE(exits[i]) << exits[i].error().message();
        EXPECT_EQ(*exits[i], vmm::VcpuExit::Kicked);
        EXPECT_EQ(must(guest.cpu(i).get_state()).segment(SegmentName::Cs).base, 0x8000u);
    }
}

TEST(KvmInterrupts, ParkedCpusCanBeKicked) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest(2);
    Result<vmm::VcpuExit> exit(vmm::VcpuExit::TripleFault);
    std::thread parked([&] { exit = guest.cpu(1).run(); });
    std::this_thread::sleep_for(20ms);
    guest.cpu(1).kick();
    parked.join();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
    EXPECT_EQ(must(guest.cpu(1).get_state()).activity, vmm::CpuActivity::WaitingForSipi);
}

}  // namespace
}  // namespace coffer::tests
