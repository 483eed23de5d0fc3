// Micro-guests that leave the vCPU in every way the run loop handles.
#include <gtest/gtest.h>

#include "tests/unit/kvm/micro_guest.hpp"

namespace coffer::tests {
namespace {

using Kind = Access::Kind;
using namespace std::chrono_literals;

TEST(KvmExits, RealModePortAccesses) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.io.read_values[0x81] = 0x37;
    load(guest.ram, 0x2000, {'o', 'v', 'm', 'f'});
    guest.enter(real_mode, {
        0xB0, 0x42, 0xE6, 0x80,                    // mov al, 0x42; out 0x80, al
        0xE4, 0x81, 0xE6, 0x82,                    // in al, 0x81; out 0x82, al
        0xBA, 0x10, 0x05, 0xB8, 0x34, 0x12, 0xEF,  // mov dx, 0x510; mov ax, 0x1234; out dx, ax
        0x66, 0xB8, 0x78, 0x56, 0x34, 0x12,        // mov eax, 0x12345678
        0x66, 0xEF,                                // out dx, eax
        0xFC, 0xBE, 0x00, 0x20, 0xB9, 0x04, 0x00,  // cld; mov si, 0x2000; mov cx, 4
        0xBA, 0x02, 0x04, 0xF3, 0x6E,              // mov dx, 0x402; rep outsb
        0xE6, 0xF4,                                // out 0xF4, al
    });
    guest.run_to_end();
    std::vector<Access> expected{
        {Kind::PioWrite, 0x80, 1, 0x42},      {Kind::PioRead, 0x81, 1, 0x37},   {Kind::PioWrite, 0x82, 1, 0x37},
        {Kind::PioWrite, 0x510, 2, 0x1234},   {Kind::PioWrite, 0x510, 4, 0x12345678},
        {Kind::PioWrite, 0x402, 1, 'o'},      {Kind::PioWrite, 0x402, 1, 'v'},  {Kind::PioWrite, 0x402, 1, 'm'},
        {Kind::PioWrite, 0x402, 1, 'f'},      {Kind::PioWrite, k_end_port, 1, 0x78},
    };
    EXPECT_EQ(guest.io.accesses(), expected);
    EXPECT_GE(guest.cpu().statistics().exits_by_kind["pio"], 7u);
}

TEST(KvmExits, StringInputFillsMemory) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.io.read_values[0x511] = 0x5A;
    guest.enter(real_mode, {
        0xFC, 0xBF, 0x00, 0x30, 0xB9, 0x10, 0x00,  // cld; mov di, 0x3000; mov cx, 16
        0xBA, 0x11, 0x05, 0xF3, 0x6C, 0xE6, 0xF4,  // mov dx, 0x511; rep insb; out 0xF4, al
    });
    guest.run_to_end();
    for (size_t i = 0; i < 16; ++i) EXPECT_EQ(guest.ram.data()[0x3000 + i], std::byte{0x5A}) << i;
    EXPECT_EQ(guest.ram.data()[0x3010], std::byte{0});
}

TEST(KvmExits, StartsAtTheResetVectorInFlash) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram flash(0x10000);
    load(flash, 0xFFF0, {0xB0, 0x5A, 0xE6, 0xF4});  // mov al, 0x5A; out 0xF4, al
    must(guest.partition->map({GuestPhysAddr(0xFFFF0000), flash.size(), flash.data(), true}));
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(k_end_port), std::vector<uint64_t>{0x5A});

    // And again after a reset, whatever the guest made of its registers.
    must(guest.cpu().set_state(long_mode(must(guest.cpu().get_state()))));
    must(guest.cpu().reset());
    must(guest.partition->reset());
    auto state = must(guest.cpu().get_state());
    EXPECT_EQ(state.cr0, 0x60000010u);
    EXPECT_EQ(state.efer, 0u);
    EXPECT_EQ(state.segment(SegmentName::Cs).base, 0xFFFF0000u);
    EXPECT_NE(state.gpr[static_cast<size_t>(Gpr::Rdx)], 0u);  // the CPU's signature
    guest.ended = false;
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(k_end_port), (std::vector<uint64_t>{0x5A, 0x5A}));
    must(guest.partition->unmap(GuestPhysAddr(0xFFFF0000)));
}

TEST(KvmExits, ProtectedModeMmio) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.io.read_values[k_mmio] = 0x11223344;
    guest.enter(protected_mode, {
        0xA1, 0x00, 0x00, 0xB0, 0xFE,              // mov eax, [k_mmio]
        0x40,                                      // inc eax
        0xA3, 0x04, 0x00, 0xB0, 0xFE,              // mov [k_mmio + 4], eax
        0xC6, 0x05, 0x08, 0x00, 0xB0, 0xFE, 0x5A,  // mov byte [k_mmio + 8], 0x5A
        0x66, 0xA3, 0x0A, 0x00, 0xB0, 0xFE,        // mov [k_mmio + 10], ax
        0xA2, 0x00, 0x0F, 0xB0, 0xFE,              // mov [k_end_address], al
    });
    guest.run_to_end();
    std::vector<Access> expected{
        {Kind::MmioRead, k_mmio, 4, 0x11223344},    {Kind::MmioWrite, k_mmio + 4, 4, 0x11223345},
        {Kind::MmioWrite, k_mmio + 8, 1, 0x5A},     {Kind::MmioWrite, k_mmio + 10, 2, 0x3345},
        {Kind::MmioWrite, k_end_address, 1, 0x45},
    };
    EXPECT_EQ(guest.io.accesses(), expected);
}

TEST(KvmExits, WideMmioComesInEightBytePieces) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    for (uint64_t i = 0; i < 16; ++i) guest.ram.data()[0x3000 + i] = std::byte(i);
    guest.enter(long_mode, {
        0x0F, 0x10, 0x04, 0x25, 0x00, 0x30, 0x00, 0x00,  // movups xmm0, [0x3000]
        0xB8, 0x00, 0x00, 0xB0, 0xFE,                    // mov eax, k_mmio
        0x0F, 0x11, 0x00,                                // movups [rax], xmm0
        0x88, 0x80, 0x00, 0x0F, 0x00, 0x00,              // mov [rax + 0xF00], al
    });
    guest.run_to_end();
    std::vector<Access> expected{
        {Kind::MmioWrite, k_mmio, 8, 0x0706050403020100},
        {Kind::MmioWrite, k_mmio + 8, 8, 0x0F0E0D0C0B0A0908},
        {Kind::MmioWrite, k_end_address, 1, 0},
    };
    EXPECT_EQ(guest.io.accesses(), expected);
}

TEST(KvmExits, WritesToReadOnlyMemoryExit) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram flash(0x1000);
    load(flash, 0, {0x11, 0x22});
    must(guest.partition->map({GuestPhysAddr(0x200000), flash.size(), flash.data(), true}));
    guest.enter(protected_mode, {
        0xC6, 0x05, 0x00, 0x00, 0x20, 0x00, 0x40,  // mov byte [0x200000], 0x40
        0xA0, 0x00, 0x00, 0x20, 0x00,              // mov al, [0x200000]
        0xE6, 0xF4,                                // out 0xF4, al
    });
    guest.run_to_end();
    std::vector<Access> expected{{Kind::MmioWrite, 0x200000, 1, 0x40}, {Kind::PioWrite, k_end_port, 1, 0x11}};
    EXPECT_EQ(guest.io.accesses(), expected);
    EXPECT_EQ(flash.data()[0], std::byte{0x11});
}

TEST(KvmExits, UserCodeRunsAndExitsByMmio) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.enter(user_mode, {
        0xB9, 0x40, 0x42, 0x0F, 0x00,  // mov ecx, 1000000
        0x31, 0xC0,                    // xor eax, eax
        0x01, 0xC8, 0xFF, 0xC9,        // again: add eax, ecx; dec ecx
        0x75, 0xFA,                    // jnz again
        0xBA, 0x00, 0x00, 0xB0, 0xFE,  // mov edx, k_mmio
        0x89, 0x02,                    // mov [rdx], eax
        0x88, 0x82, 0x00, 0x0F, 0x00, 0x00,  // mov [rdx + 0xF00], al
    });
    guest.run_to_end();
    uint64_t const sum = (uint64_t{1000000} * 1000001 / 2) & 0xFFFFFFFF;
    EXPECT_EQ(guest.io.writes(k_mmio), std::vector<uint64_t>{sum});
    EXPECT_EQ(must(guest.cpu().get_state()).segment(SegmentName::Cs).selector, k_user_code64);
}

TEST(KvmExits, TripleFaultIsReportedAndResettable) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load(guest.ram, k_code, {0x0F, 0x0B});  // ud2
    auto state = protected_mode(must(guest.cpu().get_state()));
    state.idtr = {0, 0};
    must(guest.cpu().set_state(state));
    auto exit = guest.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(*exit, vmm::VcpuExit::TripleFault);
    EXPECT_EQ(guest.cpu().statistics().exits_by_kind["shutdown"], 1u);

    must(guest.cpu().reset());
    guest.enter(real_mode, {0xE6, 0xF4});
    guest.run_to_end();
}

TEST(KvmExits, KickStopsASpinningGuest) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.enter(real_mode, {0xEB, 0xFE});  // jmp $
    for (int round = 0; round < 20; ++round) {
        std::thread kicker([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(round % 4));
            guest.cpu().kick();
        });
        auto exit = guest.run();
        kicker.join();
        ASSERT_TRUE(exit) << exit.error().message();
        EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
    }
    EXPECT_EQ(must(guest.cpu().get_state()).rip, k_code);
}

TEST(KvmExits, KickStopsAHaltedGuest) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.enter(real_mode, {0xFA, 0xF4});  // cli; hlt
    auto activity = vmm::CpuActivity::Running;
    for (int round = 0; round < 100 && activity != vmm::CpuActivity::Halted; ++round) {
        std::thread kicker([&] {
            std::this_thread::sleep_for(20ms);
            guest.cpu().kick();
        });
        auto exit = guest.run();
        kicker.join();
        ASSERT_TRUE(exit) << exit.error().message();
        EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
        activity = must(guest.cpu().get_state()).activity;  // the first kicks may come before the HLT
    }
    EXPECT_EQ(activity, vmm::CpuActivity::Halted);
}

TEST(KvmExits, AnEarlyKickIsNotLost) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.enter(real_mode, {0xEB, 0xFE});
    guest.cpu().kick();
    auto exit = guest.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(*exit, vmm::VcpuExit::Kicked);
}

TEST(KvmExits, AKickFinishesThePendingAccessFirst) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.io.read_values[0x81] = 0x37;
    guest.io.on_access = [&](Access const&) { guest.cpu().kick(); };
    guest.enter(real_mode, {0xE4, 0x81, 0xEB, 0xFE});  // in al, 0x81; jmp $
    auto exit = guest.run();
    ASSERT_TRUE(exit) << exit.error().message();
    auto state = must(guest.cpu().get_state());
    EXPECT_EQ(state.gpr[0] & 0xFF, 0x37u);
    EXPECT_EQ(state.rip, k_code + 2);
}

TEST(KvmExits, AKickFinishesAllPiecesOfAWideAccess) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.io.read_values[k_mmio] = 0x1111111111111111;
    guest.io.read_values[k_mmio + 8] = 0x2222222222222222;
    guest.io.on_access = [&](Access const&) { guest.cpu().kick(); };
    guest.enter(long_mode, {
        0xB8, 0x00, 0x00, 0xB0, 0xFE,  // mov eax, k_mmio
        0x0F, 0x10, 0x00, 0xEB, 0xFE,  // movups xmm0, [rax]; jmp $
    });
    auto exit = guest.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(guest.io.accesses().size(), 2u);
    auto state = must(guest.cpu().get_state());
    EXPECT_EQ(state.rip, k_code + 8);
    EXPECT_EQ(state.fxsave[160], 0x11);      // XMM0
    EXPECT_EQ(state.fxsave[160 + 15], 0x22);
}

TEST(KvmExits, UnknownMsrsAreBenignAndLockedOnesAnswered) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    guest.enter(protected_mode, {
        0xB9, 0x45, 0x23, 0x01, 0x00,              // mov ecx, 0x12345
        0x31, 0xC0, 0x48, 0x31, 0xD2, 0x4A,        // xor eax, eax; dec eax; xor edx, edx; dec edx
        0x0F, 0x30, 0x0F, 0x32,                    // wrmsr; rdmsr
        0xE7, 0x80,                                // out 0x80, eax
        0xE6, 0xF4,                                // out 0xF4, al
    });
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{0});
    auto exits = guest.cpu().statistics().exits_by_kind;
    EXPECT_EQ(exits["rdmsr"], 1u);
    EXPECT_EQ(exits["wrmsr"], 1u);
}

TEST(KvmExits, VirtualizationIsLockedOffInItsMsr) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    // One of them is the host's vendor's, and goes through the filter; the other is unknown to this CPU model.
    guest.enter(protected_mode, {
        0xB9, 0x3A, 0x00, 0x00, 0x00, 0x0F, 0x32, 0xE7, 0x80,  // mov ecx, 0x3A; rdmsr; out 0x80, eax
        0xB9, 0x14, 0x01, 0x01, 0xC0, 0x0F, 0x32, 0xE7, 0x81,  // mov ecx, 0xC0010114; rdmsr; out 0x81, eax
        0xE6, 0xF4,
    });
    // #GP goes to a handler that skips the 2-byte RDMSR with EAX = 0xEE.
    load(guest.ram, 0x3000 + 13 * 8, {0x00, 0x20, k_code32, 0x00, 0x00, 0x8E, 0x00, 0x00});  // gate to 0x2000
    load(guest.ram, 0x2000, {
        0x83, 0xC4, 0x04,              // add esp, 4: the error code
        0x83, 0x04, 0x24, 0x02,        // add dword [esp], 2
        0xB8, 0xEE, 0x00, 0x00, 0x00,  // mov eax, 0xEE
        0xCF,                          // iret
    });
    auto state = must(guest.cpu().get_state());
    state.idtr = {0x3000, 0xFF};
    must(guest.cpu().set_state(state));
    guest.run_to_end();
    auto intel = guest.io.writes(0x80), amd = guest.io.writes(0x81);
    ASSERT_EQ(intel.size(), 1u);
    ASSERT_EQ(amd.size(), 1u);
    EXPECT_TRUE(intel[0] == 1 || amd[0] == 0x18) << intel[0] << " " << amd[0];
    for (uint64_t value : {intel[0], amd[0]})
        EXPECT_TRUE(value == 1 || value == 0x18 || value == 0 || value == 0xEE) << value;
}

}  // namespace
}  // namespace coffer::tests
