// What the verifier of emitted code refuses.
#include <gtest/gtest.h>

#include "vmm/accel/soft/translate/emitter.hpp"
#include "vmm/accel/soft/translate/frame.hpp"
#include "vmm/accel/soft/translate/reencode.hpp"
#include "vmm/accel/soft/translate/verifier.hpp"

namespace coffer::tests {
namespace {

using namespace vmm::soft;

constexpr StepLayout k_layout{.spare = 200, .exit = 160};

// The reason for a refusal of one instruction with an operand of `size` bytes at [r14], or nothing.
std::string refusal(std::vector<uint8_t> code, size_t size = 0) {
    std::array<uint8_t, 16> exit{};
    Emitter e(exit.data(), exit.size());
    e.jump_state(k_layout.exit);
    code.insert(code.end(), exit.data(), exit.data() + e.size());
    auto refused = verify_step(code, k_layout, size);
    return refused ? refused->reason : "";
}

TEST(Verifier, AcceptsPlainInstructions) {
    EXPECT_EQ(refusal({0x48, 0x01, 0xC8}), "");                // add rax, rcx
    EXPECT_EQ(refusal({0x49, 0x89, 0x06}, 8), "");             // mov [r14], rax
    EXPECT_EQ(refusal({0x4D, 0x8B, 0x36}, 8), "");             // mov r14, [r14]
    EXPECT_EQ(refusal({0xF0, 0x41, 0x0F, 0xB1, 0x0E}, 4), ""); // lock cmpxchg [r14], ecx
    EXPECT_EQ(refusal({0x41, 0x0F, 0x28, 0x06}, 16), "");      // movaps xmm0, [r14]
}

TEST(Verifier, RefusesTheRest) {
    struct Case {
        char const* what;
        std::vector<uint8_t> code;
        size_t size;
    };
    for (Case const& c : std::vector<Case>{
             {"mov rsp, rax", {0x48, 0x89, 0xC4}, 0},
             {"add rsp, 8", {0x48, 0x83, 0xC4, 0x08}, 0},
             {"mov rax, rsp", {0x48, 0x89, 0xE0}, 0},
             {"lea rax, [rsp+8]", {0x48, 0x8D, 0x44, 0x24, 0x08}, 0},
             {"lea rax, [rip]", {0x48, 0x8D, 0x05, 0, 0, 0, 0}, 0},
             {"push rax", {0x50}, 0},
             {"ret", {0xC3}, 0},
             {"syscall", {0x0F, 0x05}, 0},
             {"int3", {0xCC}, 0},
             {"cpuid", {0x0F, 0xA2}, 0},
             {"rdtsc", {0x0F, 0x31}, 0},
             {"wrpkru", {0x0F, 0x01, 0xEF}, 0},
             {"clzero", {0x0F, 0x01, 0xFC}, 0},
             {"rep movsb", {0xF3, 0xA4}, 0},
             {"vaddps", {0xC5, 0xF8, 0x58, 0xC1}, 0},
             {"jmp rax", {0xFF, 0xE0}, 0},
             {"call", {0xE8, 0, 0, 0, 0}, 0},
             {"jump backwards", {0xEB, 0xFE}, 0},
             {"jump backwards, near", {0xE9, 0xFB, 0xFF, 0xFF, 0xFF}, 0},
             {"jump into an instruction", {0x75, 0x01, 0x48, 0x01, 0xC8}, 0},
             {"mov [rax], rcx", {0x48, 0x89, 0x08}, 8},
             {"mov [r14+8], rcx", {0x49, 0x89, 0x4E, 0x08}, 8},
             {"mov [r14+rax], rcx", {0x49, 0x89, 0x0C, 0x06}, 8},
             {"mov [r14], rcx, unchecked", {0x49, 0x89, 0x0E}, 0},
             {"mov [r14], rcx, checked for 4", {0x49, 0x89, 0x0E}, 4},
             {"twice", {0x49, 0x89, 0x0E, 0x49, 0x89, 0x0E}, 8},
             {"behind a change", {0x49, 0xFF, 0xC6, 0x49, 0x89, 0x0E}, 8},
             {"mov rax, fs:[r14]", {0x64, 0x49, 0x8B, 0x06}, 8},
             {"mov rax, [r14d]", {0x67, 0x49, 0x8B, 0x06}, 8},
             {"mov rax, r14", {0x4C, 0x89, 0xF0}, 8},
             {"mov [r14], r14", {0x4D, 0x89, 0x36}, 8},
             {"bts [r14], rax", {0x49, 0x0F, 0xAB, 0x06}, 8},
             {"bts [r14], r15, unmasked", {0x4D, 0x0F, 0xAB, 0x3E}, 8},
             {"load of another slot", {0x48, 0x8B, 0x84, 0x24, 0xA0, 0, 0, 0}, 0},
             {"store to the exit's slot", {0x48, 0x89, 0x84, 0x24, 0xA0, 0, 0, 0}, 0},
             {"mov rsi, r14 that stays", {0x49, 0x8B, 0xF6, 0x48, 0x01, 0xC8}, 8},
         }) {
        EXPECT_NE(refusal(c.code, c.size), "") << c.what;
    }
    EXPECT_TRUE(verify_step(std::vector<uint8_t>{0x48, 0x01, 0xC8}, k_layout, 0)) << "no end";
    EXPECT_TRUE(verify_step(std::vector<uint8_t>{0x48}, k_layout, 0)) << "cut";
}

TEST(Verifier, ExitsNeedAKnownSite) {
    Site site, other;
    std::array<uint8_t, 32> code{};
    Emitter e(code.data(), code.size());
    e.bytes(0x49, 0xBF);
    e.qword(reinterpret_cast<uint64_t>(&site));
    e.jump_state(offset::exit);
    std::array<Site*, 1> known{&site}, unknown{&other};
    auto made = std::span<uint8_t const>(code).first(e.size());
    EXPECT_FALSE(verify_block(made, false, known));
    EXPECT_TRUE(verify_block(made, false, unknown));
}

} // namespace
} // namespace coffer::tests
