// What the guest can see between its instructions: the state that interrupts, kicks and devices meet is one that the
// program goes through instruction by instruction.
#include <array>
#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "tests/unit/soft/micro_guest.hpp"
#include "vmm/accel/soft/translate/soft_partition.hpp"

namespace coffer::tests {
namespace {

// Every flag, the stack, registers that the translator keeps in memory, SSE, direct and indirect control flow.
GUEST_CODE(busy, R"(
1:  add %rcx, %rax
    adc %rax, (%rsi,%rcx,8)
    push %rax
    pop %rdi
    rol $5, %rbx
    xor %rax, %rbx
    jp 2f
    sub $3, %rdx
    jmp 3f
2:  sbb %rbx, %rdx
3:  call 4f
    lea 5f(%rip), %r11
    cmp %rbx, %rdx
    jmp *%r11
4:  movq %rbx, %xmm1
    paddq %xmm1, %xmm0
    add %rdx, %r9
    bt %ecx, %r9d
    ret
5:  cmovc %rax, %r8
    setb %r10b
    add %rcx, %r13
    lea 1(%r13,%r14), %r14
    xor %r14, %r15
    test $0x1f, %cl
    jnz 6f
    out %al, $0x80
6:  dec %ecx
    jnz 1b
    out %al, $0xf4
    hlt
    .p2align 8
    push %rdi
    mov 0x200000, %rdi
    mov %rax, (%rdi)
    mov %rcx, 8(%rdi)
    mov %rdx, 16(%rdi)
    mov %rbx, 24(%rdi)
    mov %rbp, 32(%rdi)
    mov %rsi, 40(%rdi)
    mov %r8, 48(%rdi)
    mov %r9, 56(%rdi)
    mov %r10, 64(%rdi)
    mov %r11, 72(%rdi)
    mov %r12, 80(%rdi)
    mov %r13, 88(%rdi)
    mov %r14, 96(%rdi)
    mov %r15, 104(%rdi)
    movq %xmm0, 112(%rdi)
    mov (%rsp), %rax
    mov %rax, 120(%rdi)
    mov 8(%rsp), %rax
    mov %rax, 128(%rdi)
    mov 24(%rsp), %rax
    mov %rax, 136(%rdi)
    mov 32(%rsp), %rax
    mov %rax, 144(%rdi)
    mov (%rdi), %rax
    add $152, %rdi
    mov %rdi, 0x200000
    pop %rdi
    iretq
)")

constexpr uint64_t k_log_pointer = 0x20'0000, k_log = 0x80'0000, k_data = 0x40'0000, k_data_size = 0x1000;
constexpr uint64_t k_handler = k_guest_code + 0x100;
constexpr unsigned k_rounds = 500;
constexpr uint8_t k_vector = 0x40;

// What the handler logs: RAX, RCX, RDX, RBX, RBP, RSI, R8-R15, XMM0, RDI, RIP, RFLAGS, RSP.
using Moment = std::array<uint64_t, 19>;
constexpr size_t k_moment_rip = 16, k_moment_rflags = 17;
constexpr uint64_t k_compared_flags = 0xED5; // CF, PF, AF, ZF, SF, IF, DF, OF

class BoundariesTest : public ::testing::Test {
protected:
    MicroGuest guest{size_t{24} << 20};
    std::set<Moment> path;
    CpuState end;
    std::vector<std::byte> data;

    void SetUp() override {
        guest.long_mode();
        guest.gate(1, k_handler);
        guest.gate(k_vector, k_handler);
        guest.put(k_guest_code, busy_code());
        // By single steps, none of which the translator takes.
        start(0x100);
        guest.run();
        auto moments = logged();
        ASSERT_GT(moments.size(), 20U * k_rounds);
        path.insert(moments.begin(), moments.end());
        path.insert(moment(begin()));
        end = guest.state;
        // The last step's trap was delivered, to a handler that did not run.
        ASSERT_EQ(end.rip, k_handler);
        uint64_t const frame = end.gpr[4];
        end.rip = guest.value(frame);
        end.rflags = guest.value(frame + 16);
        end.gpr[4] = guest.value(frame + 24);
        data.assign(guest.ram + k_data, guest.ram + k_data + k_data_size);
    }
    CpuState begin() const {
        CpuState state = guest.state;
        for (size_t i = 0; i < 16; ++i) state.gpr[i] = i * 0x0123'4567'89AB'CDEF;
        state.gpr[1] = k_rounds;
        state.gpr[4] = k_guest_stack;
        state.gpr[6] = k_data;
        state.rip = k_guest_code;
        state.rflags = 0x202;
        state.fxsave = {};
        state.fxsave[0] = 0x7F; // FCW 037F, MXCSR 1F80
        state.fxsave[1] = 0x03;
        state.fxsave[24] = 0x80;
        state.fxsave[25] = 0x1F;
        return state;
    }
    void start(uint64_t flags = 0) {
        guest.state = begin();
        guest.state.rflags |= flags;
        guest.put_value(k_log_pointer, k_log);
        std::memset(guest.ram + k_data, 0, k_data_size);
        guest.out.clear();
    }
    static Moment moment(CpuState const& s) {
        Moment m{s.gpr[0], s.gpr[1], s.gpr[2], s.gpr[3], s.gpr[5], s.gpr[6]};
        std::copy(s.gpr.begin() + 8, s.gpr.end(), m.begin() + 6);
        std::memcpy(&m[14], s.fxsave.data() + 160, 8);
        m[15] = s.gpr[7];
        m[k_moment_rip] = s.rip;
        m[k_moment_rflags] = s.rflags & k_compared_flags;
        m[18] = s.gpr[4];
        return m;
    }
    std::vector<Moment> logged() const {
        std::vector<Moment> moments((guest.value(k_log_pointer) - k_log) / sizeof(Moment));
        std::memcpy(moments.data(), guest.ram + k_log, moments.size() * sizeof(Moment));
        for (Moment& m : moments) m[k_moment_rflags] &= k_compared_flags;
        return moments;
    }
    void expect_on_path(Moment const& m) const {
        if (path.contains(m)) return;
        std::string near;
        for (Moment const& other : path)
            if (other[1] == m[1] && other[k_moment_rip] == m[k_moment_rip])
                for (size_t i = 0; i < m.size(); ++i)
                    if (other[i] != m[i]) near += fmt::format(" [{}] {:#x} for {:#x};", i, m[i], other[i]);
        ADD_FAILURE() << fmt::format("no state of the program: RIP {:#x}, RCX {},{}", m[k_moment_rip], m[1], near);
    }
    void expect_same_end() {
        EXPECT_EQ(guest.state.gpr, end.gpr);
        EXPECT_EQ(guest.state.rip, end.rip);
        EXPECT_EQ((guest.state.rflags ^ end.rflags) & k_compared_flags, 0U);
        EXPECT_EQ(std::memcmp(guest.state.fxsave.data() + 160, end.fxsave.data() + 160, 256), 0);
        EXPECT_EQ(std::memcmp(guest.ram + k_data, data.data(), data.size()), 0);
        EXPECT_EQ(guest.out.size(), k_rounds / 32);
    }
    void raise() {
        guest.apic.pending.push_back(k_vector);
        guest.partition->signals(0)->interrupt_raised();
    }
};

TEST_F(BoundariesTest, WithoutInterrupts) {
    start();
    guest.run();
    EXPECT_TRUE(logged().empty());
    expect_same_end();
}

TEST_F(BoundariesTest, AnInterruptBehindEveryBlock) {
    start();
    bool returned = false; // each block runs once behind its interrupt
    vmm::soft::set_block_trace(*guest.vcpu, [&](vmm::soft::Cpu const& cpu) {
        bool const handler = cpu.rip >= k_handler;
        if (!handler && !returned && guest.apic.pending.empty()) raise();
        returned = handler;
    });
    guest.run();
    vmm::soft::set_block_trace(*guest.vcpu, nullptr);
    auto moments = logged();
    EXPECT_GT(moments.size(), 6U * k_rounds);
    std::set<uint64_t> places;
    for (Moment const& m : moments) {
        expect_on_path(m);
        if (HasFailure()) break;
        places.insert(m[k_moment_rip]);
    }
    // Each jump, call and return, and where each leads to.
    EXPECT_GE(places.size(), 7U);
    expect_same_end();
}

TEST_F(BoundariesTest, AnInterruptFromADeviceInItsAccess) {
    start();
    guest.on_out = [&](uint16_t, uint64_t) { raise(); };
    guest.run();
    auto moments = logged();
    EXPECT_EQ(moments.size(), k_rounds / 32);
    for (Moment const& m : moments) expect_on_path(m);
    expect_same_end();
}

// Blocks are linked to each other here, and each kick meets another one.
TEST_F(BoundariesTest, KicksAndInterruptsAtAnyTime) {
    size_t kicks = 0, interrupts = 0;
    std::atomic<bool> stop{false};
    std::thread kicker([&] {
        while (!stop.load()) {
            std::this_thread::sleep_for(std::chrono::microseconds(20));
            guest.vcpu->kick();
        }
    });
    auto const until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!HasFailure() && (kicks < 50 || interrupts < 50) && std::chrono::steady_clock::now() < until) {
        start();
        guest.run();
        while (!HasFailure() && !guest.done) {
            if (guest.state.rip < k_handler) {
                kicks += guest.state.rip != k_guest_code;
                expect_on_path(moment(guest.state));
                if (guest.apic.pending.empty()) raise();
            }
            guest.resume();
        }
        guest.apic.pending.clear();
        for (Moment const& m : logged()) {
            ++interrupts;
            expect_on_path(m);
        }
        if (!HasFailure()) expect_same_end();
    }
    stop.store(true);
    kicker.join();
    EXPECT_GE(kicks, 50U);
    EXPECT_GE(interrupts, 50U);
}

GUEST_CODE(rewritten, R"(
    mov $10, %ecx
    xor %ebx, %ebx
1:  out %al, $0x80
    add $1, %ebx
    dec %ecx
    jnz 1b
    out %al, $0xf4
    hlt
)")

// DMA into the block that runs, in the access that starts it.
TEST(Boundaries, ADeviceRewritesTheCodeBehindItsAccess) {
    MicroGuest guest;
    guest.long_mode();
    uint8_t next = 0;
    constexpr uint64_t k_immediate = k_guest_code + 11;
    guest.on_out = [&](uint16_t, uint64_t) {
        guest.put_value<uint8_t>(k_immediate, ++next);
        guest.partition->memory_written(GuestPhysAddr(k_immediate), 1);
    };
    guest.put(k_guest_code, rewritten_code());
    ASSERT_EQ(guest.value<uint8_t>(k_immediate), 1);
    guest.run();
    EXPECT_EQ(guest.reg(Gpr::Rbx), 55U);
}

} // namespace
} // namespace coffer::tests
