// State saved on one backend and restored on the other: what runs is one machine.
#include <gtest/gtest.h>

#include "base/tagged.hpp"
#include "tests/unit/kvm/micro_guest.hpp"

namespace coffer::tests {
namespace {

// Stops `from` behind its third write to port 0x80 and goes on with a copy of its RAM on `to`.
void hand_over(MicroGuest& from, MicroGuest& to) {
    from.io.on_access = [&](Access const& access) {
        if (access.address == 0x80 && from.io.writes(0x80).size() == 3) from.cpu().kick();
    };
    auto exit = from.run();
    ASSERT_TRUE(exit) << exit.error().message();
    ASSERT_EQ(from.io.writes(0x80).size(), 3u);
    CpuState state;
    must(decode_fields(encode_fields(must(from.cpu().get_state())), state));
    std::copy_n(from.ram.data(), from.ram.size(), to.ram.data());
    must(to.cpu().set_state(state));
    to.run_to_end();
}

struct Case {
    CpuState (*mode)(CpuState);
    std::vector<uint8_t> code;
    std::vector<uint64_t> before, after;
};

// Six steps of a sum, told on port 0x80: in general registers, in memory, in XMM0.
std::vector<Case> cases() {
    return {
        {protected_mode,
         {0x31, 0xC9, 0x31, 0xDB,                    // xor ecx, ecx; xor ebx, ebx
          0x41, 0x01, 0xCB, 0x89, 0xD8, 0xE7, 0x80,  // again: inc ecx; add ebx, ecx; mov eax, ebx; out 0x80, eax
          0x83, 0xF9, 0x06, 0x75, 0xF4,              // cmp ecx, 6; jne again
          0xE6, 0xF4},
         {1, 3, 6},
         {10, 15, 21}},
        {long_mode,
         {0x31, 0xC9, 0x66, 0x0F, 0xEF, 0xC0,                    // xor ecx, ecx; pxor xmm0, xmm0
          0xFF, 0xC1, 0x66, 0x0F, 0x6E, 0xC9,                    // again: inc ecx; movd xmm1, ecx
          0x66, 0x0F, 0xFE, 0xC1, 0x66, 0x0F, 0x7E, 0xC0,        // paddd xmm0, xmm1; movd eax, xmm0
          0xE7, 0x80, 0x83, 0xF9, 0x06, 0x75, 0xEB, 0xE6, 0xF4}, // out 0x80, eax; cmp ecx, 6; jne again
         {1, 3, 6},
         {10, 15, 21}},
    };
}

void enter(MicroGuest& guest, Case const& test) {
    std::memcpy(guest.ram.data() + k_code, test.code.data(), test.code.size());
    must(guest.cpu().set_state(test.mode(must(guest.cpu().get_state()))));
}

TEST(KvmHandover, FromSoftToKvm) {
    SKIP_WITHOUT_KVM();
    for (auto const& test : cases()) {
        MicroGuest soft(1, vmm::create_soft_partition), kvm;
        enter(soft, test);
        hand_over(soft, kvm);
        EXPECT_EQ(soft.io.writes(0x80), test.before);
        EXPECT_EQ(kvm.io.writes(0x80), test.after);
    }
}

TEST(KvmHandover, FromKvmToSoft) {
    SKIP_WITHOUT_KVM();
    for (auto const& test : cases()) {
        MicroGuest kvm, soft(1, vmm::create_soft_partition);
        enter(kvm, test);
        hand_over(kvm, soft);
        EXPECT_EQ(kvm.io.writes(0x80), test.before);
        EXPECT_EQ(soft.io.writes(0x80), test.after);
    }
}

}  // namespace
}  // namespace coffer::tests
