// One plain instruction at a time: results that the manuals define, in the registers' awkward places.
#include <cstring>
#include <initializer_list>

#include <gtest/gtest.h>

#include "vmm/accel/soft/translate/native_step.hpp"

namespace coffer::tests {
namespace {

using namespace coffer::vmm;
using namespace coffer::vmm::soft;

constexpr uint64_t k_next_rip = 0x1234'5678'9ABC;

struct NativeStepTest : ::testing::Test {
    std::unique_ptr<NativeStep> stepper;
    NativeRegisters regs;
    Decoded d{};
    std::array<uint8_t, 256> memory{};
    uint64_t linear = 0;

    void SetUp() override {
        auto made = NativeStep::create();
        ASSERT_TRUE(made);
        stepper = std::move(*made);
        uint16_t fcw = 0x37F;
        uint32_t mxcsr = 0x1F80;
        std::memcpy(regs.fxsave.data(), &fcw, 2);
        std::memcpy(regs.fxsave.data() + 24, &mxcsr, 4);
        for (unsigned i = 0; i < 16; ++i) regs.gpr[i] = 0x1111'1111'1111'1111ULL * i;
    }
    uint64_t& reg(Gpr name) { return regs.gpr[static_cast<size_t>(name)]; }

    std::optional<Vector> run(unsigned bits, std::initializer_list<uint8_t> code) {
        std::vector<uint8_t> bytes(code);
        EXPECT_EQ(decode(bits, bytes, d), DecodeStatus::Ok);
        EXPECT_EQ(d.cls, InsnClass::Plain);
        EXPECT_EQ(d.length(), bytes.size());
        if (d.cls != InsnClass::Plain) return Vector::UD;
        std::span<uint8_t> operand;
        if (d.memory.present) operand = std::span(memory).first(d.memory.size);
        return stepper->run(d, k_next_rip, linear, regs, operand);
    }
    uint64_t memory_value() const {
        uint64_t value;
        std::memcpy(&value, memory.data(), 8);
        return value;
    }
};

TEST_F(NativeStepTest, RegistersThatMoveAreFound) {
    reg(Gpr::Rsp) = 0x7000;
    reg(Gpr::R13) = 5;
    EXPECT_FALSE(run(64, {0x4C, 0x01, 0xEC})); // add rsp, r13
    EXPECT_EQ(reg(Gpr::Rsp), 0x7005u);
    EXPECT_EQ(reg(Gpr::R13), 5u);
    reg(Gpr::R14) = 3;
    reg(Gpr::R15) = 4;
    EXPECT_FALSE(run(64, {0x4D, 0x0F, 0xAF, 0xF7})); // imul r14, r15
    EXPECT_EQ(reg(Gpr::R14), 12u);
    EXPECT_FALSE(run(64, {0x4D, 0x87, 0xFE})); // xchg r14, r15
    EXPECT_EQ(reg(Gpr::R14), 4u);
    EXPECT_EQ(reg(Gpr::R15), 12u);
    EXPECT_FALSE(run(64, {0x4D, 0x01, 0xFF})); // add r15, r15
    EXPECT_EQ(reg(Gpr::R15), 24u);
    EXPECT_FALSE(run(64, {0x41, 0xBF, 1, 0, 0, 0x80})); // mov r15d, imm
    EXPECT_EQ(reg(Gpr::R15), 0x80000001u);
    EXPECT_FALSE(run(64, {0x49, 0x94})); // xchg rax, r12
    EXPECT_EQ(reg(Gpr::Rax), 0x1111'1111'1111'1111ULL * 12);
    EXPECT_FALSE(run(64, {0x49, 0x95})); // xchg rax, r13
    EXPECT_EQ(reg(Gpr::Rax), 5u);
    EXPECT_EQ(reg(Gpr::R13), 0x1111'1111'1111'1111ULL * 12);
    reg(Gpr::Rsp) = 0x11;
    EXPECT_FALSE(run(64, {0x40, 0x80, 0xC4, 0xF0})); // add spl, 0xF0
    EXPECT_EQ(reg(Gpr::Rsp), 0x01u);
}

TEST_F(NativeStepTest, SixteenBitWritesKeepTheRest) {
    EXPECT_FALSE(run(64, {0x66, 0x41, 0xBE, 0x34, 0x12})); // mov r14w, 0x1234
    EXPECT_EQ(reg(Gpr::R14), (0x1111'1111'1111'1111ULL * 14 & ~0xFFFFULL) | 0x1234);
    EXPECT_FALSE(run(16, {0xB8, 0x34, 0x12})); // mov ax, 0x1234
    EXPECT_EQ(reg(Gpr::Rax), 0x1234u);
    EXPECT_FALSE(run(16, {0x66, 0xBC, 1, 2, 3, 4})); // mov esp, 0x04030201
    EXPECT_EQ(reg(Gpr::Rsp), 0x04030201u);
}

TEST_F(NativeStepTest, MemoryOperandsAreRead_Modified_Written) {
    memory[0] = 7;
    reg(Gpr::R15) = 3;
    EXPECT_FALSE(run(64, {0x4C, 0x01, 0x38})); // add [rax], r15
    EXPECT_EQ(memory_value(), 10u);
    EXPECT_TRUE(d.memory.read && d.memory.write);
    EXPECT_FALSE(run(64, {0x4C, 0x8B, 0x68, 0x08})); // mov r13, [rax+8]
    EXPECT_EQ(reg(Gpr::R13), 10u);
    EXPECT_TRUE(d.memory.read && !d.memory.write);
    reg(Gpr::Rcx) = 0xAB00;
    EXPECT_FALSE(run(64, {0x88, 0x2E})); // mov [rsi], ch
    EXPECT_EQ(memory[0], 0xAB);
    EXPECT_FALSE(run(64, {0x02, 0x26})); // add ah, [rsi]
    EXPECT_EQ(reg(Gpr::Rax) & 0xFF00, 0xAB00u);
    EXPECT_EQ(reg(Gpr::Rsi), 0x1111'1111'1111'1111ULL * 6);
    EXPECT_FALSE(run(64, {0x0F, 0xB6, 0xE4})); // movzx esp, ah
    EXPECT_EQ(reg(Gpr::Rsp), 0xABu);
    reg(Gpr::Rax) = 0;
    EXPECT_FALSE(run(64, {0xA1, 8, 7, 6, 5, 4, 3, 2, 1})); // mov eax, [moffs]
    EXPECT_EQ(reg(Gpr::Rax), 0xABu);
    EXPECT_EQ(effective_offset(d, regs.gpr, k_next_rip), 0x0102030405060708u);
    reg(Gpr::Rbx) = 0x100;
    reg(Gpr::Rax) = 0x102;
    EXPECT_FALSE(run(64, {0xD7})); // xlat
    EXPECT_EQ(effective_offset(d, {0x102, 0, 0, 0x100}, k_next_rip), 0x102u);
    EXPECT_EQ(reg(Gpr::Rax), 0x1ABu);
}

TEST_F(NativeStepTest, FlagsGoInAndOut) {
    regs.rflags = 0x3202 | 1; // IF and IOPL are not the host's business
    reg(Gpr::Rax) = 0xFFFF'FFFF'FFFF'FFFF;
    EXPECT_FALSE(run(64, {0x48, 0x83, 0xD0, 0x00})); // adc rax, 0
    EXPECT_EQ(reg(Gpr::Rax), 0u);
    EXPECT_EQ(regs.rflags, 0x3202u | 0x1 | 0x4 | 0x10 | 0x40);
    EXPECT_FALSE(run(64, {0xFD})); // std
    EXPECT_EQ(regs.rflags & 0x400, 0x400u);
    EXPECT_FALSE(run(64, {0xFC}));
    EXPECT_EQ(regs.rflags & 0x400, 0u);
}

TEST_F(NativeStepTest, BitStrings) {
    regs.rflags = 2 | 0x40 | 0x800; // ZF and OF stay
    reg(Gpr::R14) = static_cast<uint64_t>(-63);
    reg(Gpr::Rdi) = 0x1000;
    EXPECT_FALSE(run(64, {0xF0, 0x4C, 0x0F, 0xAB, 0x37})); // lock bts [rdi], r14
    EXPECT_TRUE(d.bit_string);
    EXPECT_EQ(effective_offset(d, regs.gpr, k_next_rip), 0x1000u - 8);
    EXPECT_EQ(memory_value(), 2u);
    EXPECT_EQ(regs.rflags, 2u | 0x40 | 0x800);
    EXPECT_EQ(reg(Gpr::R14), static_cast<uint64_t>(-63));
    reg(Gpr::Rax) = 33;
    EXPECT_FALSE(run(64, {0x0F, 0xB3, 0x07})); // btr [rdi], eax
    EXPECT_EQ(effective_offset(d, regs.gpr, k_next_rip), 0x1004u);
    EXPECT_EQ(memory_value(), 0u);
    EXPECT_EQ(regs.rflags, 3u | 0x40 | 0x800);
}

TEST_F(NativeStepTest, LegacyEncodings) {
    reg(Gpr::Rsp) = 0x1'0000'0000;
    EXPECT_FALSE(run(32, {0x4C})); // dec esp
    EXPECT_EQ(reg(Gpr::Rsp), 0xFFFF'FFFFu);
    EXPECT_FALSE(run(32, {0x66, 0x44})); // inc sp
    EXPECT_EQ(reg(Gpr::Rsp), 0xFFFF'0000u);
    EXPECT_FALSE(run(16, {0x42})); // inc dx
    EXPECT_EQ(reg(Gpr::Rdx), 0x2222'2222'2222'2223u);
    EXPECT_FALSE(run(32, {0x82, 0xC0, 0x01})); // add al, 1 by the alias of 80
    EXPECT_EQ(reg(Gpr::Rax), 1u);
}

// With the prefix that 16-bit operands need on the host, CLFLUSH would be CLFLUSHOPT.
TEST_F(NativeStepTest, NoSizePrefixWhereItMeansSomethingElse) {
    EXPECT_FALSE(run(16, {0x0F, 0xAE, 0x3F})); // clflush [bx]
    EXPECT_FALSE(run(16, {0x0F, 0xAE, 0xF8})); // sfence
    EXPECT_FALSE(run(16, {0x0F, 0xC7, 0x0F})); // cmpxchg8b [bx]
}

TEST_F(NativeStepTest, Lea) {
    reg(Gpr::R13) = 0x10;
    reg(Gpr::R14) = 0x100;
    EXPECT_FALSE(run(64, {0x4F, 0x8D, 0x7C, 0xF5, 0x04})); // lea r15, [r13+r14*8+4]
    EXPECT_EQ(reg(Gpr::R15), 0x814u);
    EXPECT_FALSE(run(64, {0x48, 0x8D, 0x05, 0x10, 0, 0, 0})); // lea rax, [rip+0x10]
    EXPECT_EQ(reg(Gpr::Rax), k_next_rip + 0x10);
    reg(Gpr::Rsp) = 0xFFFF'FFFF'FFFF'FFFF;
    EXPECT_FALSE(run(64, {0x67, 0x48, 0x8D, 0x44, 0x24, 0x02})); // lea rax, [esp+2]
    EXPECT_EQ(reg(Gpr::Rax), 1u);
    EXPECT_FALSE(run(64, {0x66, 0x8D, 0x54, 0x24, 0x03})); // lea dx, [rsp+3]
    EXPECT_EQ(reg(Gpr::Rdx), 0x2222'2222'2222'0002u);
}

TEST_F(NativeStepTest, HostFaultsAreVectors) {
    reg(Gpr::Rcx) = 0;
    auto before = regs.gpr;
    EXPECT_EQ(run(64, {0x48, 0xF7, 0xF1}), Vector::DE); // div rcx
    EXPECT_EQ(regs.gpr, before);
    linear = 8;
    EXPECT_EQ(run(64, {0x0F, 0x28, 0x00}), Vector::GP); // movaps xmm0, [rax], misaligned
    linear = 16;
    EXPECT_FALSE(run(64, {0x0F, 0x28, 0x00}));
    regs.fxsave[25] = 0; // all SSE exceptions unmasked
    regs.fxsave[24] = 0;
    EXPECT_EQ(run(64, {0xF3, 0x0F, 0x5E, 0xC1}), Vector::XM); // divss xmm0, xmm1: 0/0
    EXPECT_EQ(regs.fxsave[24] & 1, 1);
    memory[2] = 0xFF;                                   // reserved MXCSR bits
    EXPECT_EQ(run(64, {0x0F, 0xAE, 0x10}), Vector::GP); // ldmxcsr [rax]
}

TEST_F(NativeStepTest, PendingX87ExceptionIsReportedAtTheNextInstruction) {
    memory[0] = 0x7B; // unmask zero-divide
    memory[1] = 0x03;
    EXPECT_FALSE(run(64, {0xD9, 0x28}));    // fldcw
    EXPECT_FALSE(run(64, {0xD9, 0xE8}));    // fld1
    EXPECT_FALSE(run(64, {0xD9, 0xEE}));    // fldz
    EXPECT_FALSE(run(64, {0xDE, 0xF9}));    // fdivp: 1/0
    EXPECT_EQ(run(64, {0x9B}), Vector::MF); // fwait
    std::fill(memory.begin(), memory.end(), uint8_t{0xEE});
    EXPECT_FALSE(run(64, {0xD9, 0x30})); // fnstenv: no host addresses
    EXPECT_EQ(d.memory.size, 28);
    for (size_t i = 12; i < 28; ++i) EXPECT_EQ(memory[i], 0) << i;
    EXPECT_FALSE(run(64, {0xDB, 0xE2})); // fnclex
    EXPECT_FALSE(run(64, {0x9B}));
}

TEST_F(NativeStepTest, MaskedMove) {
    std::fill(memory.begin(), memory.end(), uint8_t{0x55});
    regs.fxsave[160] = 0x99;      // xmm0[0]
    regs.fxsave[160 + 15] = 0x77; // xmm0[15]
    regs.fxsave[176] = 0x80;      // xmm1: mask byte 0
    EXPECT_FALSE(run(64, {0x66, 0x0F, 0xF7, 0xC1}));
    EXPECT_EQ(memory[0], 0x99);
    EXPECT_EQ(memory[15], 0x55);
    EXPECT_EQ(reg(Gpr::Rdi), 0x1111'1111'1111'1111ULL * 7);
}

TEST(AllowList, WhatIsNotPlain) {
    struct Case {
        std::vector<uint8_t> bytes;
        InsnClass cls;
    };
    Decoded d{};
    for (Case const& c : std::vector<Case>{
             {{0x0F, 0x01, 0xFC}, InsnClass::System},             // clzero
             {{0x66, 0x0F, 0x38, 0xF8, 0x00}, InsnClass::System}, // movdir64b
             {{0xF2, 0x0F, 0x38, 0xF8, 0x00}, InsnClass::System}, // enqcmd
             {{0x0F, 0x01, 0xEF}, InsnClass::System},             // wrpkru
             {{0x0F, 0x01, 0xC1}, InsnClass::System},             // vmcall
             {{0x0F, 0x01, 0xD7}, InsnClass::System},             // enclu
             {{0x0F, 0x05}, InsnClass::System},                   // syscall
             {{0x0F, 0x31}, InsnClass::System},                   // rdtsc
             {{0x0F, 0x01, 0x10}, InsnClass::System},             // lgdt
             {{0xF3, 0x0F, 0xAE, 0xD0}, InsnClass::System},       // wrfsbase
             {{0x8E, 0xD8}, InsnClass::System},                   // mov ds, ax
             {{0x8C, 0xD8}, InsnClass::System},                   // mov ax, ds
             {{0x0F, 0x20, 0xC0}, InsnClass::System},             // mov rax, cr0
             {{0x0F, 0x23, 0xC0}, InsnClass::System},             // mov dr0, rax
             {{0xF2, 0xA5}, InsnClass::System},                   // repne movsd
             {{0xCD, 0x80}, InsnClass::System},                   // int
             {{0xCF}, InsnClass::System},                         // iret
             {{0xCB}, InsnClass::System},                         // retf
             {{0xFF, 0x28}, InsnClass::System},                   // jmp far
             {{0x9C}, InsnClass::System},                         // pushf
             {{0xFA}, InsnClass::System},                         // cli
             {{0x0F, 0xAE, 0x00}, InsnClass::System},             // fxsave
             {{0x0F, 0x01, 0xD0}, InsnClass::System},             // xgetbv
             {{0xC5, 0xF8, 0x58, 0xC1}, InsnClass::Undefined},    // vaddps
             {{0x62, 0xF1, 0x7C, 0x48, 0x58, 0xC1}, InsnClass::Undefined},
             {{0x0F, 0x0B}, InsnClass::Undefined},             // ud2
             {{0x0F, 0x0F, 0xC1, 0x9E}, InsnClass::Undefined}, // pfadd
             {{0xE8, 0, 0, 0, 0}, InsnClass::Branch},
             {{0xFF, 0xE0}, InsnClass::Branch},
             {{0xC3}, InsnClass::Branch},
             {{0x50}, InsnClass::Stack},
             {{0xFF, 0x30}, InsnClass::Stack},
             {{0xC9}, InsnClass::Stack},
             {{0x0F, 0xA0}, InsnClass::System},            // push fs
             {{0xF3, 0x0F, 0x1E, 0xFA}, InsnClass::Plain}, // endbr64
         }) {
        ASSERT_EQ(decode(64, c.bytes, d), DecodeStatus::Ok);
        EXPECT_EQ(d.cls, c.cls) << ZydisMnemonicGetString(d.insn.mnemonic);
    }
    std::vector<uint8_t> cut{0x48, 0x8B};
    EXPECT_EQ(decode(64, cut, d), DecodeStatus::NeedMore);
    std::vector<uint8_t> prefixes(15, 0x66);
    EXPECT_EQ(decode(64, prefixes, d), DecodeStatus::TooLong);
    std::vector<uint8_t> lock{0xF0, 0x89, 0x00};
    EXPECT_EQ(decode(64, lock, d), DecodeStatus::Undefined);
    std::vector<uint8_t> tzcnt{0xF3, 0x0F, 0xBC, 0xC1};
    ASSERT_EQ(decode(64, tzcnt, d), DecodeStatus::Ok);
    EXPECT_EQ(d.insn.mnemonic, ZYDIS_MNEMONIC_BSF);
}

} // namespace
} // namespace coffer::tests
