// The way into emitted code and out of it. See frame.hpp.
#include "vmm/accel/soft/translate/frame.hpp"
#include "vmm/accel/soft/translate/reencode.hpp"

namespace coffer::vmm::soft {

static_assert(offset::gpr == k_gpr_offset && k_gpr_offset == 0);
static_assert(offsetof(Cpu, fxsave) % 16 == 0);

// Whether the check at an access site would succeed now. Called while the guest's FPU state is live: general registers
// only. An access that crosses into the next page never does.
extern "C" __attribute__((used, visibility("hidden"), target("general-regs-only"))) bool
coffer_soft_fill(Cpu* cpu, uint64_t linear, Site const* site) {
    if ((linear & (k_page_size - 1)) > k_page_size - site->size) return false;
    return fill_tlb(*cpu, linear, site->write);
}

// Offsets for the assembly.
#define FRAME_OFFSETS                                                                                                  \
    [host_rsp] "i"(offsetof(Frame, host_rsp)), [host_flags] "i"(offsetof(Frame, host_flags)),                          \
        [fxsave] "i"(offsetof(Cpu, fxsave)), [linear] "i"(offsetof(Frame, linear)),                                    \
        [entry] "i"(offsetof(Frame, entry)), [site] "i"(offsetof(Frame, site)),                                        \
        [mxcsr] "i"(offsetof(Frame, host_mxcsr)), [site_retry] "i"(offsetof(Site, retry))

extern "C" __attribute__((naked)) void coffer_soft_enter(Frame*) {
    asm volatile(R"(
    push %%rbx
    push %%rbp
    push %%r12
    push %%r13
    push %%r14
    push %%r15
    mov %%rsp, %c[host_rsp](%%rdi)
    mov %%rdi, %%rsp
    fxrstor64 %c[fxsave](%%rsp)
    pushq %c[host_flags](%%rsp)
    popfq
    mov 0(%%rsp), %%rax
    mov 8(%%rsp), %%rcx
    mov 16(%%rsp), %%rdx
    mov 24(%%rsp), %%rbx
    mov 32(%%rsp), %%r13
    mov 40(%%rsp), %%rbp
    mov 48(%%rsp), %%rsi
    mov 56(%%rsp), %%rdi
    mov 64(%%rsp), %%r8
    mov 72(%%rsp), %%r9
    mov 80(%%rsp), %%r10
    mov 88(%%rsp), %%r11
    mov 96(%%rsp), %%r12
    mov %c[linear](%%rsp), %%r14
    jmp *%c[entry](%%rsp)
)" ::FRAME_OFFSETS);
}

extern "C" __attribute__((naked)) void coffer_soft_fault() {
    asm volatile("mov $0, %%r15d\n jmp coffer_soft_exit" ::);
}

extern "C" __attribute__((naked)) void coffer_soft_exit() {
    asm volatile(R"(
    mov %%rax, 0(%%rsp)
    mov %%rcx, 8(%%rsp)
    mov %%rdx, 16(%%rsp)
    mov %%rbx, 24(%%rsp)
    mov %%r13, 32(%%rsp)
    mov %%rbp, 40(%%rsp)
    mov %%rsi, 48(%%rsp)
    mov %%rdi, 56(%%rsp)
    mov %%r8, 64(%%rsp)
    mov %%r9, 72(%%rsp)
    mov %%r10, 80(%%rsp)
    mov %%r11, 88(%%rsp)
    mov %%r12, 96(%%rsp)
    mov %%r14, %c[linear](%%rsp)
    mov %%r15, %c[site](%%rsp)
    pushfq
    popq %c[host_flags](%%rsp)
    cld
    fxsave64 %c[fxsave](%%rsp)
    fninit
    ldmxcsr %c[mxcsr](%%rsp)
    mov %c[host_rsp](%%rsp), %%rsp
    pop %%r15
    pop %%r14
    pop %%r13
    pop %%r12
    pop %%rbp
    pop %%rbx
    ret
)" ::FRAME_OFFSETS);
}

extern "C" __attribute__((naked)) void coffer_soft_cold() {
    asm volatile(R"(
    mov %%rax, 0(%%rsp)
    mov %%rcx, 8(%%rsp)
    mov %%rdx, 16(%%rsp)
    mov %%rsi, 48(%%rsp)
    mov %%rdi, 56(%%rsp)
    mov %%r8, 64(%%rsp)
    mov %%r9, 72(%%rsp)
    mov %%r10, 80(%%rsp)
    mov %%r11, 88(%%rsp)
    mov %%rsp, %%rdi
    mov %%r14, %%rsi
    mov %%r15, %%rdx
    pushfq
    sub $8, %%rsp
    cld
    call coffer_soft_fill
    add $8, %%rsp
    test %%al, %%al
    jz 1f
    popfq
    mov 0(%%rsp), %%rax
    mov 8(%%rsp), %%rcx
    mov 16(%%rsp), %%rdx
    mov 48(%%rsp), %%rsi
    mov 56(%%rsp), %%rdi
    mov 64(%%rsp), %%r8
    mov 72(%%rsp), %%r9
    mov 80(%%rsp), %%r10
    mov 88(%%rsp), %%r11
    jmp *%c[site_retry](%%r15)
1:  popfq
    mov 0(%%rsp), %%rax
    mov 8(%%rsp), %%rcx
    mov 16(%%rsp), %%rdx
    mov 48(%%rsp), %%rsi
    mov 56(%%rsp), %%rdi
    mov 64(%%rsp), %%r8
    mov 72(%%rsp), %%r9
    mov 80(%%rsp), %%r10
    mov 88(%%rsp), %%r11
    jmp coffer_soft_exit
)" ::FRAME_OFFSETS);
}

} // namespace coffer::vmm::soft
