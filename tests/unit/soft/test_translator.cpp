// Guests of a few instructions, translated.
#include <chrono>
#include <thread>

#include "tests/unit/soft/micro_guest.hpp"
#include "vmm/accel/soft/translate/soft_partition.hpp"

namespace coffer::tests {
namespace {

GUEST_CODE(arithmetic, R"(
    mov $1000, %ecx
    xor %eax, %eax
    xor %edx, %edx
    mov $0x200000, %rdi
    mov $3, %r13d
    mov $5, %r14
    xor %r15d, %r15d
1:  add %rcx, %rax
    mov %rax, (%rdi,%rcx,8)
    add (%rdi,%rcx,8), %r15
    add %r13, %r14
    cmp $500, %rcx
    adc $0, %rdx
    dec %ecx
    jnz 1b
    call 2f
    jmp 3f
2:  push %r14
    pop %rbx
    lea 7(%rsp), %r8
    ret $0
3:  out %al, $0xf4
    hlt
)")

TEST(Translator, LoopsMemoryAndCalls) {
    MicroGuest guest;
    guest.long_mode();
    guest.run(arithmetic_code());
    uint64_t sum = 0, total = 0;
    for (uint64_t c = 1000; c > 0; --c) {
        sum += c;
        total += sum;
    }
    EXPECT_EQ(guest.reg(Gpr::Rax), sum);
    EXPECT_EQ(guest.reg(Gpr::R15), total);
    EXPECT_EQ(guest.reg(Gpr::R14), 5 + 3 * 1000u);
    EXPECT_EQ(guest.reg(Gpr::Rbx), 5 + 3 * 1000u);
    EXPECT_EQ(guest.reg(Gpr::Rdx), 499u);
    EXPECT_EQ(guest.reg(Gpr::R8), k_guest_stack - 8 + 7);
    EXPECT_EQ(guest.reg(Gpr::Rsp), k_guest_stack);
    EXPECT_EQ(guest.value(0x200000 + 8), sum);
    EXPECT_EQ(guest.state.rip, k_guest_code + arithmetic_code().size() - 1);
}

GUEST_CODE(flat32, R"(
    .code32
    mov $100, %ecx
    xor %eax, %eax
1:  inc %eax
    push %eax
    pop %ebx
    movw $0x1234, 0x200000(,%eax,4)
    lea 0xFFFFFFF0(%ebx), %edx
    loop 1b
    call 2f
2:  pop %esi
    pushl $-3
    pop %edi
    bts %edi, 0x300100
    mov $(3f - 2b), %ebp
    add %esi, %ebp
    jmp *%ebp
    ud2
3:  out %al, $0xf4
    hlt
)")

TEST(Translator, Flat32BitCode) {
    MicroGuest guest;
    guest.protected_mode();
    guest.run(flat32_code());
    EXPECT_EQ(guest.reg(Gpr::Rax), 100u);
    EXPECT_EQ(guest.reg(Gpr::Rbx), 100u);
    EXPECT_EQ(guest.reg(Gpr::Rdx), 84u);
    EXPECT_EQ(guest.reg(Gpr::Rdi), 0xFFFFFFFDu);
    EXPECT_EQ(guest.value<uint16_t>(0x200000 + 400), 0x1234);
    EXPECT_EQ(guest.value<uint32_t>(0x3000FC), 0x20000000u);
    EXPECT_EQ(guest.reg(Gpr::Rsp), k_guest_stack);
}

GUEST_CODE(real_mode, R"(
    .code16
    mov $0x1234, %ax
    mov %ax, %ds
    movw $0xBEEF, 0x10
    mov 0x10, %bx
    mov $3, %cx
1:  add $2, %dx
    loop 1b
    call 2f
    jmp 3f
2:  ret
3:  addl $1, %esi
    out %al, $0xf4
    hlt
)")

TEST(Translator, RealMode) {
    MicroGuest guest;
    guest.state.segment(SegmentName::Cs).selector = 0x1000;
    guest.state.segment(SegmentName::Cs).base = 0x10000;
    guest.state.rip = 0;
    guest.state.gpr = {};
    guest.state.gpr[4] = 0x8000;
    guest.put(0x10000, real_mode_code());
    guest.run();
    EXPECT_EQ(guest.reg(Gpr::Rbx), 0xBEEFu);
    EXPECT_EQ(guest.reg(Gpr::Rdx), 6u);
    EXPECT_EQ(guest.reg(Gpr::Rsi), 1u);
    EXPECT_EQ(guest.value<uint16_t>(0x12350), 0xBEEF);
    EXPECT_EQ(guest.reg(Gpr::Rsp), 0x8000u);
}

GUEST_CODE(self_modifying, R"(
    lea 1f(%rip), %rbx
    xor %eax, %eax
    mov $4, %ecx
2:
1:  add $1, %eax
    addb $1, 2(%rbx)
    dec %ecx
    jnz 2b
    movb $0x42, 3f+1(%rip)
3:  mov $0, %dl
    out %al, $0xf4
    hlt
)")

TEST(Translator, SelfModifyingCode) {
    MicroGuest guest;
    guest.long_mode();
    guest.run(self_modifying_code());
    EXPECT_EQ(guest.reg(Gpr::Rax), 1 + 2 + 3 + 4u);
    EXPECT_EQ(guest.reg(Gpr::Rdx) & 0xFF, 0x42u);
}

GUEST_CODE(fault, R"(
    mov $0x100ffc, %eax
    mov $7, %edx
    cmp $7, %edx
    stc
    mov %rdx, (%rax)
    nop
    hlt
    .p2align 8
    mov %cr2, %rbx
    pop %r8
    pop %r9
    mov 8(%rsp), %r10
    out %al, $0xf4
    hlt
)")

TEST(Translator, PageFaultsArePrecise) {
    MicroGuest guest;
    guest.long_mode();
    // 0x101000 is absent: the store crosses into it.
    guest.put_value<uint64_t>(k_guest_tables + 0x3000 + 0x101 * 8, 0);
    guest.gate(14, k_guest_code + 0x100);
    guest.put_value<uint64_t>(0x100ff8, 0x1122334455667788);
    guest.put(0x8000, Bytes());
    // The code lies elsewhere than the data's page.
    guest.put(0x180000, fault_code());
    guest.gate(14, 0x180100);
    guest.state.rip = 0x180000;
    guest.run();
    EXPECT_EQ(guest.reg(Gpr::Rbx), 0x101000u);
    EXPECT_EQ(guest.reg(Gpr::R8), 2u);
    EXPECT_EQ(guest.reg(Gpr::R9), 0x180000 + 5 + 5 + 3 + 1u);
    EXPECT_EQ(guest.reg(Gpr::R10) & 0x8D5, 0x45u);
    EXPECT_EQ(guest.value(0x100ff8), 0x1122334455667788u);
}

GUEST_CODE(divide, R"(
    mov $1, %eax
    xor %edx, %edx
    xor %ecx, %ecx
    div %ecx
    hlt
    .p2align 8
    pop %r9
    out %al, $0xf4
    hlt
)")

TEST(Translator, HostFaultsReachTheGuest) {
    MicroGuest guest;
    guest.long_mode();
    guest.gate(0, k_guest_code + 0x100);
    guest.run(divide_code());
    EXPECT_EQ(guest.reg(Gpr::R9), k_guest_code + 5 + 2 + 2);
    EXPECT_EQ(guest.reg(Gpr::Rax), 1u);
}

GUEST_CODE(device, R"(
    mov $0x3f000000, %eax
    mov (%rax), %rbx
    movl $0x55, 4(%rax)
    addw $1, 8(%rax)
    push 16(%rax)
    pop %rcx
    movdqu 32(%rax), %xmm1
    movq %xmm1, %rdx
    lock xadd %ebx, 64(%rax)
    out %al, $0xf4
    hlt
)")

TEST(Translator, DeviceAccessesHappenOnce) {
    MicroGuest guest;
    guest.long_mode();
    guest.run(device_code());
    EXPECT_EQ(guest.reg(Gpr::Rbx), 0x43424140u);
    EXPECT_EQ(guest.reg(Gpr::Rcx), 0x1716151413121110u);
    EXPECT_EQ(guest.reg(Gpr::Rdx), 0x2726252423222120u);
    std::vector<std::tuple<bool, uint64_t, size_t, uint64_t>> expected{
        {false, 0x3f000000, 8, 0},     {true, 0x3f000004, 4, 0x55}, {false, 0x3f000008, 2, 0},
        {true, 0x3f000008, 2, 0x0909}, {false, 0x3f000010, 8, 0},   {false, 0x3f000020, 8, 0},
        {false, 0x3f000028, 8, 0},     {false, 0x3f000040, 4, 0},   {true, 0x3f000040, 4, 0x46444240}};
    EXPECT_EQ(guest.mmio, expected);
}

GUEST_CODE(spin, R"(
    sti
1:  inc %rax
    jmp 1b
    .p2align 8
    inc %rbx
    pop %r9
    out %al, $0xf4
    push %r9
    iretq
)")

TEST(Translator, InterruptsStopLoops) {
    MicroGuest guest;
    guest.long_mode();
    guest.gate(0x40, k_guest_code + 0x100);
    guest.apic.pending.push_back(0x40);
    guest.run(spin_code());
    EXPECT_EQ(guest.reg(Gpr::Rbx), 1u);
    uint64_t spun = guest.reg(Gpr::Rax);
    EXPECT_EQ(guest.reg(Gpr::R9), k_guest_code + 4); // the shadow of STI covers INC
    std::thread later([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        guest.apic.pending.push_back(0x40);
        guest.partition->signals(0)->interrupt_raised();
    });
    guest.resume();
    later.join();
    EXPECT_EQ(guest.reg(Gpr::Rbx), 2u);
    EXPECT_GT(guest.reg(Gpr::Rax), spun + 1000);
}

GUEST_CODE(halted, R"(
    sti
    hlt
    mov $1, %r8d
    hlt
    .p2align 8
    out %al, $0xf4
    iretq
)")

TEST(Translator, HaltWaitsForInterrupts) {
    MicroGuest guest;
    guest.long_mode();
    guest.gate(0x40, k_guest_code + 0x100);
    std::thread later([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        guest.apic.pending.push_back(0x40);
        guest.partition->signals(0)->interrupt_raised();
    });
    guest.run(halted_code());
    later.join();
    EXPECT_TRUE(guest.done);
    std::thread kicker([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        guest.vcpu->kick();
    });
    guest.resume();
    kicker.join();
    EXPECT_EQ(guest.reg(Gpr::R8), 1u);
    EXPECT_EQ(guest.state.activity, CpuActivity::Halted);
}

GUEST_CODE(single_step, R"(
    pushfq
    orl $0x100, (%rsp)
    popfq
    nop
    inc %rax
    pushfq
    andl $0xfffffeff, (%rsp)
    popfq
    nop
    out %al, $0xf4
    hlt
    .p2align 8
    inc %rbx
    mov (%rsp), %r9
    mov %dr6, %r10
    iretq
)")

TEST(Translator, TrapFlagStepsOneInstruction) {
    MicroGuest guest;
    guest.long_mode();
    guest.state.gpr[0] = guest.state.gpr[3] = 0;
    guest.gate(1, k_guest_code + 0x100);
    guest.run(single_step_code());
    EXPECT_EQ(guest.reg(Gpr::Rax), 1u);
    // Behind NOP, INC, PUSHFQ, AND and the POPFQ that ends it.
    EXPECT_EQ(guest.reg(Gpr::Rbx), 5u);
    EXPECT_EQ(guest.reg(Gpr::R10) & 0x4000, 0x4000u);
}

TEST(Translator, TraceSeesEveryBlock) {
    MicroGuest guest;
    guest.long_mode();
    std::vector<uint64_t> rips;
    vmm::soft::set_block_trace(*guest.vcpu, [&](vmm::soft::Cpu const& cpu) { rips.push_back(cpu.rip); });
    guest.run(arithmetic_code());
    // A thousand rounds of the loop, and its surroundings.
    EXPECT_GT(rips.size(), 1000u);
    EXPECT_EQ(rips.front(), k_guest_code);
    vmm::soft::set_block_trace(*guest.vcpu, nullptr);
}

GUEST_CODE(cross_page, R"(
    mov $0x20, %ecx
    mov $0x150ffd, %ebx
1:  call *%rbx
    dec %ecx
    jnz 1b
    out %al, $0xf4
    hlt
)")

TEST(Translator, InstructionsAcrossPagesFollowTheMapping) {
    MicroGuest guest;
    guest.long_mode();
    guest.state.gpr[0] = 0;
    // add rax, imm32; ret: three bytes in the first page, the rest in the second.
    std::array<uint8_t, 7> function{0x48, 0x05, 1, 0, 0, 0, 0xC3};
    guest.put(0x150ffd, std::as_bytes(std::span(function)));
    guest.run(cross_page_code());
    EXPECT_EQ(guest.reg(Gpr::Rax), 0x20u);
    // Another page behind the second linear one: other bytes of the same instruction.
    function[3] = 1;
    guest.put(0x160000, std::as_bytes(std::span(function)).subspan(3));
    guest.put_value<uint64_t>(k_guest_tables + 0x3000 + 0x151 * 8, 0x160007);
    guest.state.rip = k_guest_code;
    guest.state.gpr[0] = 0;
    guest.run();
    EXPECT_EQ(guest.reg(Gpr::Rax), 0x20u * 0x101);
    // And not present: the fault is the instruction's, at the second page.
    guest.put_value<uint64_t>(k_guest_tables + 0x3000 + 0x151 * 8, 0);
    guest.gate(14, 0x7000);
    std::array<uint8_t, 3> const stub{0xE6, k_done_port, 0xF4};
    guest.put(0x7000, std::as_bytes(std::span(stub)));
    guest.state.rip = k_guest_code;
    guest.run();
    EXPECT_EQ(guest.state.cr2, 0x151000u);
    EXPECT_EQ(guest.value(guest.reg(Gpr::Rsp) + 8), 0x150ffdu);
}

TEST(Translator, DeviceWritesToCodeAreSeen) {
    MicroGuest guest;
    guest.long_mode();
    guest.run(arithmetic_code());
    ASSERT_EQ(guest.reg(Gpr::R14), 5 + 3 * 1000u);
    // mov $1000, %ecx becomes mov $10, %ecx, and nobody but memory_written() says so.
    guest.put_value<uint32_t>(k_guest_code + 1, 10);
    guest.partition->memory_written(GuestPhysAddr(k_guest_code + 1), 4);
    guest.state.rip = k_guest_code;
    guest.run();
    EXPECT_EQ(guest.reg(Gpr::R14), 5 + 3 * 10u);
}

TEST(Translator, CodeMayEndWithTheAddressSpace) {
    MicroGuest guest;
    std::vector<std::byte> top(2 * 4096);
    std::byte* page = top.data() + (4096 - reinterpret_cast<uintptr_t>(top.data()) % 4096);
    ASSERT_TRUE(guest.partition->map({GuestPhysAddr(0xFFFF'F000), 4096, page, false}));
    guest.protected_mode();
    for (Segment& segment : guest.state.segments) segment = Segment{0x2B, 0xC0F3, 0xFFFFFFFF, 0};
    guest.state.segment(SegmentName::Cs) = Segment{0x1B, 0xC0FB, 0xFFFFFFFF, 0};
    std::array<uint8_t, 2> const loop{0xE2, 0xFE};                   // loop to itself
    std::array<uint8_t, 5> const done{0xA3, 0x00, 0xF0, 0xFF, 0x3F}; // mov [k_done_address], eax
    std::memcpy(page + 0xFFE, loop.data(), loop.size());
    guest.put(0, std::as_bytes(std::span(done)));
    guest.state.gpr[1] = 3;
    guest.state.rip = 0xFFFF'FFFE;
    guest.run();
    EXPECT_EQ(guest.reg(Gpr::Rcx), 0u);
    EXPECT_EQ(guest.state.rip, done.size());
}

} // namespace
} // namespace coffer::tests
