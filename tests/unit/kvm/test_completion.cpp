// Instructions that KVM's emulator refuses. Where ring 0 runs on the CPU the same guests need no completion, but for
// operands in MMIO.
#include <gtest/gtest.h>

#include "tests/unit/kvm/micro_guest.hpp"

namespace coffer::tests {
namespace {

constexpr uint64_t k_idt = 0x3000, k_buffer = 0x5000, k_tss = 0x6800;
constexpr uint16_t k_handler = 0x2000;

// Interrupt gates to ring 0; `dpl` is who may use them by INT.
void set_gate(MicroGuest& guest, unsigned vector, uint8_t dpl = 0) {
    load(guest.ram, k_idt + vector * 8,
         {k_handler & 0xFF, k_handler >> 8, k_code32, 0, 0, static_cast<uint8_t>(0x8E | dpl << 5), 0, 0});
}
void set_gate64(MicroGuest& guest, unsigned vector) {
    load(guest.ram, k_idt + vector * 16, {k_handler & 0xFF, k_handler >> 8, k_code64, 0, 0, 0x8E, 0, 0});
}

// Says the error code on port 0x90 and CR2 on port 0x91, and ends. 32- and 64-bit.
void load_fault_handler(MicroGuest& guest) {
    load(guest.ram, k_handler, {
        0x58, 0xE7, 0x90,              // pop rax; out 0x90, eax
        0x0F, 0x20, 0xD0, 0xE7, 0x91,  // mov rax, cr2; out 0x91, eax
        0xE6, 0xF4,
    });
}

// EBX points at the buffer.
void enter(MicroGuest& guest, CpuState (*mode)(CpuState), Code code) {
    load(guest.ram, k_code, code);
    auto state = mode(must(guest.cpu().get_state()));
    if (state.cr0 & 1) state.idtr = {k_idt, 0xFFF};
    state.gpr[static_cast<size_t>(Gpr::Rbx)] = k_buffer;
    must(guest.cpu().set_state(state));
}

bool native(MicroGuest& guest) { return guest.partition->capabilities().native_ring0; }

void expect_completed(MicroGuest& guest, uint64_t at_least) {
    if (native(guest)) return;
    EXPECT_GE(guest.cpu().statistics().completed_instructions, at_least);
}

uint32_t word(MicroGuest& guest, uint64_t address) { return load_le<uint32_t>(guest.ram.bytes(), address); }

TEST(KvmCompletion, TheFirmwaresFpuSetUp) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    store_le<uint16_t>(guest.ram.bytes(), k_buffer, 0x037E);
    store_le<uint32_t>(guest.ram.bytes(), k_buffer + 4, 0x1F80);
    enter(guest, protected_mode, {
        0x9B, 0xDB, 0xE3,                    // finit
        0xD9, 0x2B,                          // fldcw [ebx]
        0x0F, 0x20, 0xE0,                    // mov eax, cr4
        0x0D, 0x00, 0x06, 0x00, 0x00,        // or eax, 0x600
        0x0F, 0x22, 0xE0,                    // mov cr4, eax
        0x0F, 0xAE, 0x53, 0x04,              // ldmxcsr [ebx + 4]
        0xD9, 0xE8, 0xD9, 0xEB, 0xDE, 0xC1,  // fld1; fldpi; faddp
        0xDB, 0x5B, 0x08,                    // fistp dword [ebx + 8]
        0xD9, 0x7B, 0x0C,                    // fnstcw [ebx + 12]
        0x0F, 0xAE, 0x5B, 0x10,              // stmxcsr [ebx + 16]
        0xE6, 0xF4,
    });
    guest.run_to_end();
    EXPECT_EQ(word(guest, k_buffer + 8), 4u);
    EXPECT_EQ(word(guest, k_buffer + 12), 0x037Eu);
    EXPECT_EQ(word(guest, k_buffer + 16), 0x1F80u);
    expect_completed(guest, 5);
}

TEST(KvmCompletion, RealModeSegments) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    store_le<uint16_t>(guest.ram.bytes(), 0x6010, 0x0F7F);
    enter(guest, real_mode, {
        0xB8, 0x00, 0x06, 0x8E, 0xC0,  // mov ax, 0x600; mov es, ax
        0x26, 0xD9, 0x2E, 0x10, 0x00,  // fldcw es:[0x10]
        0x26, 0xD9, 0x3E, 0x20, 0x00,  // fnstcw es:[0x20]
        0xE6, 0xF4,
    });
    guest.run_to_end();
    EXPECT_EQ(word(guest, 0x6020), 0x0F7Fu);
    expect_completed(guest, 1);
}

TEST(KvmCompletion, VectorsAndIntegersAt64Bits) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    for (uint32_t i = 0; i < 4; ++i) store_le<uint32_t>(guest.ram.bytes(), k_buffer + i * 4, 100 + i);
    enter(guest, long_mode, {
        0x66, 0x0F, 0x6F, 0x03,                                // movdqa xmm0, [rbx]
        0x66, 0x0F, 0xFE, 0x03,                                // paddd xmm0, [rbx]
        0x66, 0x44, 0x0F, 0x6F, 0xC0,                          // movdqa xmm8, xmm0
        0x66, 0x44, 0x0F, 0xFE, 0x05, 0xEA, 0x3F, 0x00, 0x00,  // paddd xmm8, [rip + 0x3FEA]: the buffer again
        0x66, 0x44, 0x0F, 0x7F, 0x43, 0x20,                    // movdqa [rbx + 32], xmm8
        0xF3, 0x48, 0x0F, 0xB8, 0xC3,                          // popcnt rax, rbx
        0x48, 0x89, 0x43, 0x40,                                // mov [rbx + 64], rax
        0xF2, 0x48, 0x0F, 0x2A, 0xD0,                          // cvtsi2sd xmm2, rax
        0xF2, 0x0F, 0x58, 0xD2,                                // addsd xmm2, xmm2
        0xF2, 0x48, 0x0F, 0x2D, 0xC2,                          // cvtsd2si rax, xmm2
        0x48, 0x89, 0x43, 0x48,                                // mov [rbx + 72], rax
        0xE6, 0xF4,
    });
    guest.run_to_end();
    for (uint32_t i = 0; i < 4; ++i) EXPECT_EQ(word(guest, k_buffer + 32 + i * 4), 3 * (100 + i)) << i;
    EXPECT_EQ(word(guest, k_buffer + 64), 2u);
    EXPECT_EQ(word(guest, k_buffer + 72), 4u);
    expect_completed(guest, 6);
}

TEST(KvmCompletion, CompareAndExchange16Bytes) {
    SKIP_WITHOUT_KVM();
    Code const code = {
        0x31, 0xC0, 0x31, 0xD2, 0xB9, 0x11, 0x00, 0x00, 0x00,  // xor eax, eax; xor edx, edx; mov ecx, 0x11
        0xF0, 0x48, 0x0F, 0xC7, 0x0B,                          // lock cmpxchg16b [rbx]
        0x0F, 0x94, 0xC0, 0xE6, 0x80, 0xE6, 0xF4,              // sete al; out 0x80, al; end
    };
    MicroGuest guest;
    enter(guest, long_mode, code);
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{1});
    EXPECT_EQ(word(guest, k_buffer), k_buffer);
    EXPECT_EQ(word(guest, k_buffer + 8), 0x11u);
    expect_completed(guest, 1);

    if (native(guest)) return;
    MicroGuest several(2);
    enter(several, long_mode, code);
    auto exit = several.run();
    ASSERT_FALSE(exit);
    EXPECT_EQ(exit.error().code(), ErrorCode::Unsupported);
    EXPECT_NE(exit.error().message().find("'cmpxchg16b' (f0 48 0f c7 0b)"), std::string::npos) << exit.error().message();
    EXPECT_NE(exit.error().message().find("0018:1009"), std::string::npos) << exit.error().message();
}

TEST(KvmCompletion, SoftwareInterruptsAndTheirReturn) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    set_gate(guest, 3);
    set_gate(guest, 0x80);
    load(guest.ram, k_handler, {0xE6, 0x80, 0xCF});  // out 0x80, al; iret
    enter(guest, protected_mode, {
        0xB0, 0x01, 0xCC,        // mov al, 1; int3
        0xB0, 0x02, 0xCD, 0x80,  // mov al, 2; int 0x80
        0xB0, 0x03, 0xE6, 0x80,  // mov al, 3; out 0x80, al
        0xE6, 0xF4,
    });
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), (std::vector<uint64_t>{1, 2, 3}));
    EXPECT_EQ(guest.gpr(Gpr::Rsp), k_stack);
    expect_completed(guest, 4);
}

TEST(KvmCompletion, SegmentQueries) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    enter(guest, protected_mode, {
        0xB8, k_code32, 0x00, 0x00, 0x00,                      // mov eax, k_code32
        0x0F, 0x02, 0xC8, 0x89, 0x0B,                          // lar ecx, eax; mov [ebx], ecx
        0x0F, 0x03, 0xC8, 0x89, 0x4B, 0x04,                    // lsl ecx, eax; mov [ebx + 4], ecx
        0x0F, 0x00, 0xE8, 0x0F, 0x94, 0xC0, 0xE6, 0x80,        // verw ax; sete al; out 0x80, al
        0xB8, k_data, 0x00, 0x00, 0x00,                        // mov eax, k_data
        0x0F, 0x00, 0xE8, 0x0F, 0x94, 0xC0, 0xE6, 0x80,        // verw ax; sete al; out 0x80, al
        0xE6, 0xF4,
    });
    guest.run_to_end();
    EXPECT_EQ(word(guest, k_buffer), 0x00CF9B00u & 0x00F0FF00u);
    EXPECT_EQ(word(guest, k_buffer + 4), 0xFFFFFFFFu);
    EXPECT_EQ(guest.io.writes(0x80), (std::vector<uint64_t>{0, 1}));
    expect_completed(guest, 4);
}

TEST(KvmCompletion, TimeStampWithProcessorId) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    enter(guest, long_mode, {
        0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0x48, 0x89, 0x03,        // rdtsc to [rbx]
        0x0F, 0x01, 0xF9, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0x48, 0x89, 0x43, 0x08,  // rdtscp to [rbx + 8]
        0x89, 0x4B, 0x10,                                                              // mov [rbx + 16], ecx
        0x0F, 0x31, 0x48, 0xC1, 0xE2, 0x20, 0x48, 0x09, 0xD0, 0x48, 0x89, 0x43, 0x18,  // rdtsc to [rbx + 24]
        0xE6, 0xF4,
    });
    auto state = must(guest.cpu().get_state());
    constexpr uint32_t k_tsc_aux = 0xC0000103;
    state.msrs.push_back({k_tsc_aux, 0x77});
    must(guest.cpu().set_state(state));
    uint64_t processor = 0;  // where KVM has the MSR
    for (auto const& value : must(guest.cpu().get_state()).msrs)
        if (value.index == k_tsc_aux) processor = value.value;
    guest.run_to_end();
    EXPECT_EQ(word(guest, k_buffer + 16), processor);
    auto at = [&](uint64_t offset) { return load_le<uint64_t>(guest.ram.bytes(), k_buffer + offset); };
    // Two ways to read one clock; they agree to 10 ms.
    uint64_t const slack = guest.partition->tsc_hz() / 100;
    EXPECT_GE(at(8) + slack, at(0));
    EXPECT_GE(at(24) + slack, at(8));
    EXPECT_LT(at(24) - at(0), 6000 * slack);  // a minute, on the most loaded host
}

TEST(KvmCompletion, FaultsOfTheInstructionAreDelivered) {
    SKIP_WITHOUT_KVM();
    {
        MicroGuest guest;
        load_fault_handler(guest);
        set_gate64(guest, 14);
        enter(guest, long_mode, {
            0x48, 0xB8, 0x00, 0x50, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,  // mov rax, 0x100005000: not mapped
            0x0F, 0xAE, 0x10, 0xE6, 0xF4,                                // ldmxcsr [rax]
        });
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(0x90), std::vector<uint64_t>{0});  // a read of a page that is not present
        EXPECT_EQ(guest.io.writes(0x91), std::vector<uint64_t>{0x5000});
    }
    {
        MicroGuest guest;
        load_fault_handler(guest);
        set_gate64(guest, 13);
        enter(guest, long_mode, {0x66, 0x0F, 0xFE, 0x43, 0x04, 0xE6, 0xF4});  // paddd xmm0, [rbx + 4]: unaligned
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(0x90), std::vector<uint64_t>{0});
    }
    {
        MicroGuest guest;
        load_fault_handler(guest);
        set_gate64(guest, 13);
        store_le<uint32_t>(guest.ram.bytes(), k_buffer, 0xFFFF0000);
        enter(guest, long_mode, {0x0F, 0xAE, 0x13, 0xE6, 0xF4});  // ldmxcsr with reserved bits
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(0x90), std::vector<uint64_t>{0});
    }
    {
        MicroGuest guest;
        set_gate(guest, 7);
        load(guest.ram, k_handler, {0xB0, 0x07, 0xE6, 0x80, 0xE6, 0xF4});
        load(guest.ram, k_code, {0xD9, 0x2B, 0xE6, 0xF4});  // fldcw [ebx] with CR0.TS: #NM
        auto state = protected_mode(must(guest.cpu().get_state()));
        state.idtr = {k_idt, 0xFFF};
        state.cr0 |= 8;
        must(guest.cpu().set_state(state));
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{7});
    }
}

TEST(KvmCompletion, WhatCpuidDoesNotOfferIsUndefined) {
    SKIP_WITHOUT_KVM();
    for (Code code : {Code{0xC5, 0xF8, 0x58, 0xC0, 0xE6, 0xF4},    // vaddps xmm0, xmm0, xmm0, without CR4.OSXSAVE
                      Code{0x0F, 0x01, 0xD0, 0xE6, 0xF4, 0x90}}) {  // xgetbv, the same
        MicroGuest guest;
        set_gate64(guest, 6);
        load(guest.ram, k_handler, {0xB0, 0x06, 0xE6, 0x80, 0xE6, 0xF4});
        enter(guest, long_mode, code);
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{6});
    }
}

TEST(KvmCompletion, OperandsInMmioAndRom) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram flash(0x1000);
    must(guest.partition->map({GuestPhysAddr(0x200000), flash.size(), flash.data(), true}));
    guest.io.read_values[k_mmio] = 0x0000000200000001;
    guest.io.read_values[k_mmio + 8] = 0x0000000400000003;
    guest.io.read_values[k_mmio + 0x20] = 0x0B7F;
    enter(guest, long_mode, {
        0xB8, 0x00, 0x00, 0xB0, 0xFE,                    // mov eax, k_mmio
        0x66, 0x0F, 0xEF, 0xC0,                          // pxor xmm0, xmm0
        0x66, 0x0F, 0xFE, 0x00,                          // paddd xmm0, [rax]
        0x66, 0x0F, 0x7F, 0x03,                          // movdqa [rbx], xmm0
        0xD9, 0x68, 0x20,                                // fldcw [rax + 0x20]
        0xD9, 0x3C, 0x25, 0x00, 0x00, 0x20, 0x00,        // fnstcw [0x200000]
        0x66, 0x0F, 0x7E, 0x40, 0x40,                    // movd [rax + 0x40], xmm0
        0xE6, 0xF4,
    });
    guest.run_to_end();
    for (uint32_t i = 0; i < 4; ++i) EXPECT_EQ(word(guest, k_buffer + i * 4), i + 1) << i;
    EXPECT_EQ(guest.io.writes(0x200000), std::vector<uint64_t>{0x0B7F});
    EXPECT_EQ(guest.io.writes(k_mmio + 0x40), std::vector<uint64_t>{1});
    EXPECT_EQ(flash.data()[0], std::byte{0});
    EXPECT_GE(guest.cpu().statistics().completed_instructions, 1u);  // KVM emulates MMIO everywhere
}

CpuState user_with_task(CpuState state) {
    state = user_mode(std::move(state));
    state.tr = {0x48, 0x8B, 0x67, k_tss};  // RSP0 in it is written by the test
    return state;
}

TEST(KvmCompletion, ProgramsOfTheGuest) {
    SKIP_WITHOUT_KVM();
    {
        MicroGuest guest;
        guest.io.read_values[k_mmio] = 0x1000;
        guest.io.read_values[k_mmio + 8] = 0;
        enter(guest, user_with_task, {
            0xB8, 0x00, 0x00, 0xB0, 0xFE,        // mov eax, k_mmio
            0x66, 0x0F, 0xEF, 0xC0,              // pxor xmm0, xmm0
            0x66, 0x0F, 0xFE, 0x00,              // paddd xmm0, [rax]
            0x66, 0x0F, 0x7E, 0x40, 0x40,        // movd [rax + 0x40], xmm0
            0x88, 0x80, 0x00, 0x0F, 0x00, 0x00,  // mov [rax + 0xF00], al
        });
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(k_mmio + 0x40), std::vector<uint64_t>{0x1000});
        EXPECT_GE(guest.cpu().statistics().completed_instructions, 1u);
    }
    {
        // What cannot be completed is the program's #UD, not the machine's end.
        MicroGuest guest;
        store_le<uint64_t>(guest.ram.bytes(), k_tss + 4, 0x9000);
        set_gate64(guest, 6);
        load(guest.ram, k_handler, {0xB0, 0x06, 0xE6, 0x80, 0xE6, 0xF4});
        enter(guest, user_with_task, {
            0xBA, 0x00, 0x00, 0xB0, 0xFE,  // mov edx, k_mmio
            0xC5, 0xF8, 0x11, 0x02,        // vmovups [rdx], xmm0
            0x88, 0x82, 0x00, 0x0F, 0x00, 0x00,
        });
        guest.run_to_end();
        EXPECT_EQ(guest.io.writes(0x80), std::vector<uint64_t>{6});
    }
}

TEST(KvmCompletion, SingleStepTrapsBehindTheInstruction) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    set_gate(guest, 1);
    // mov eax, dr6; out 0x80, eax; pop eax; out 0x81, eax
    load(guest.ram, k_handler, {0x0F, 0x21, 0xF0, 0xE7, 0x80, 0x58, 0xE7, 0x81, 0xE6, 0xF4});
    store_le<uint16_t>(guest.ram.bytes(), k_buffer, 0x037F);
    enter(guest, protected_mode, {0xD9, 0x2B, 0x90, 0x90, 0xE6, 0xF4});  // fldcw [ebx]
    auto state = must(guest.cpu().get_state());
    state.rflags |= 0x100;
    must(guest.cpu().set_state(state));
    guest.run_to_end();
    ASSERT_EQ(guest.io.writes(0x80).size(), 1u);
    EXPECT_NE(guest.io.writes(0x80)[0] & 0x4000, 0u);
    EXPECT_EQ(guest.io.writes(0x81), std::vector<uint64_t>{k_code + 2});
}

TEST(KvmCompletion, StoresAreInTheDirtyLog) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    auto* log = guest.partition->dirty_log();
    must(log->start());
    enter(guest, protected_mode, {0xD9, 0x3B, 0xE6, 0xF4});  // fnstcw [ebx]
    must(log->harvest(GuestPhysAddr(0)));
    guest.run_to_end();
    auto dirty = must(log->harvest(GuestPhysAddr(0)));
    ASSERT_FALSE(dirty.empty());
    EXPECT_NE(dirty[0] & (1u << (k_buffer / 0x1000)), 0u);
}

TEST(KvmCompletion, TripleFaultInADelivery) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load(guest.ram, k_code, {0xCD, 0x80});  // int 0x80 with an IDT of no entries
    auto state = protected_mode(must(guest.cpu().get_state()));
    state.idtr = {0, 0};
    must(guest.cpu().set_state(state));
    auto exit = guest.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(*exit, vmm::VcpuExit::TripleFault);
}

}  // namespace
}  // namespace coffer::tests
