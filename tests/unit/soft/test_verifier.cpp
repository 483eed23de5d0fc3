// What the verifier of emitted code refuses.
#include <gtest/gtest.h>

#include "vmm/accel/soft/translate/block_builder.hpp"
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

// What the allow-list lets through, in whatever mode and with whatever prefixes, comes out as something that the
// verifier explains: else a guest could end its VM.
TEST(Verifier, ExplainsEveryPlainEncoding) {
    std::vector<std::vector<uint8_t>> prefixes;
    for (std::vector<uint8_t> const& legacy : std::vector<std::vector<uint8_t>>{{},
                                                                                {0x66},
                                                                                {0xF2},
                                                                                {0xF3},
                                                                                {0x66, 0xF2},
                                                                                {0xF3, 0x66},
                                                                                {0xF0},
                                                                                {0xF0, 0x66},
                                                                                {0x67},
                                                                                {0x67, 0x66},
                                                                                {0x64}})
        for (int rex : {0, 0x40, 0x48, 0x4D}) {
            prefixes.push_back(legacy);
            if (rex) prefixes.back().push_back(static_cast<uint8_t>(rex));
        }
    std::vector<uint8_t> const modrms{0x04, 0x0B, 0x15, 0x1C, 0x23, 0x2E, 0x37, 0x3F, 0x46, 0x8D, 0xC1, 0xCC,
                                      0xD3, 0xDE, 0xE5, 0xEC, 0xF7, 0xFC, 0xE0, 0xF0, 0xC8, 0xD0, 0xD8, 0xE8};
    size_t plain = 0, failed = 0;
    Decoded d{};
    for (unsigned bits : {16U, 32U, 64U})
        for (auto const& prefix : prefixes) {
            bool rex = !prefix.empty() && (prefix.back() & 0xF0) == 0x40;
            if (rex && bits != 64) continue;
            for (int map = 0; map < 4; ++map)
                for (unsigned opcode = 0; opcode < 256; ++opcode)
                    for (uint8_t modrm : modrms) {
                        std::array<uint8_t, 15> code{};
                        size_t n = 0;
                        for (uint8_t byte : prefix) code[n++] = byte;
                        if (map > 0) code[n++] = 0x0F;
                        if (map > 1) code[n++] = map == 2 ? 0x38 : 0x3A;
                        code[n++] = static_cast<uint8_t>(opcode);
                        code[n] = modrm;
                        if (decode(bits, code, d) != DecodeStatus::Ok || d.cls != InsnClass::Plain) continue;
                        ++plain;
                        std::array<uint8_t, 256> made{};
                        Emitter e(made.data(), made.size());
                        emit_plain(e, d, 0x1000, k_layout.spare);
                        e.jump_state(k_layout.exit);
                        auto out = std::span<uint8_t const>(made).first(e.size());
                        if (auto refused = verify_step(out, k_layout, d.memory.size); refused && ++failed < 20) {
                            std::string text;
                            for (uint8_t byte : std::span(d.bytes).first(d.length()))
                                text += fmt::format("{:02x}", byte);
                            ADD_FAILURE() << bits << " bits, " << text << " " << ZydisMnemonicGetString(d.insn.mnemonic)
                                          << ": " << refused->reason;
                        }
                    }
        }
    EXPECT_EQ(failed, 0u);
    EXPECT_GT(plain, 100'000u);
}

// The same for whole blocks, of any class of instruction, at both privileges.
TEST(Verifier, ExplainsEveryBlock) {
    BlockBuilder builder;
    std::deque<Site> sites;
    std::vector<uint8_t> page(4096);
    size_t built = 0, failed = 0;
    for (unsigned bits : {32U, 64U})
        for (std::vector<uint8_t> const& prefix : std::vector<std::vector<uint8_t>>{
                 {}, {0x66}, {0xF2}, {0xF3}, {0xF0}, {0x67}, {0x65}, {0x48}, {0x4D}, {0x66, 0x4D}, {0xF0, 0x4D}})
            for (int map = 0; map < 4; ++map)
                for (unsigned opcode = 0; opcode < 256; ++opcode)
                    for (uint8_t modrm : std::initializer_list<uint8_t>{0x04, 0x0B, 0x15, 0x26, 0x3F, 0x74, 0x8D, 0xC1,
                                                                        0xCC, 0xD3, 0xE5, 0xF7, 0xFC}) {
                        size_t n = 0;
                        for (uint8_t byte : prefix) page[n++] = byte;
                        if (map > 0) page[n++] = 0x0F;
                        if (map > 1) page[n++] = map == 2 ? 0x38 : 0x3A;
                        page[n++] = static_cast<uint8_t>(opcode);
                        page[n++] = modrm;
                        page[n++] = static_cast<uint8_t>(opcode * 7 + modrm); // SIB, displacement or immediate
                        std::fill(page.begin() + static_cast<ptrdiff_t>(n), page.begin() + 16, uint8_t{0x90});
                        Block block;
                        block.second_page = k_no_page;
                        BlockSource source;
                        // The last bytes of the 32-bit address space, or user code far from the kernel's.
                        source.rip = bits == 32 ? 0xFFFF'FFF0 : 0x7FFF'1234'5FF0;
                        source.key = ModeKey{static_cast<uint8_t>(bits), opcode % 2 == 0, 1};
                        source.cr4 = 1 << 9;
                        source.first_page = std::span<uint8_t const>(page).first(16);
                        BlockBuilder::Target target{page.data(), 0, &sites};
                        if (builder.build(source, target, block) != BlockBuilder::Outcome::Built) continue;
                        ++built;
                        auto refused = verify_block(builder.code(), source.key.user, builder.sites());
                        if (refused && ++failed < 20)
                            ADD_FAILURE() << bits << " bits: map " << map << " opcode " << std::hex << opcode
                                          << " modrm " << int{modrm} << ": " << refused->reason;
                        sites.clear();
                    }
    EXPECT_EQ(failed, 0u);
    EXPECT_GT(built, 100'000u);
}

} // namespace
} // namespace coffer::tests
