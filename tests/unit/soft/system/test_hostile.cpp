// Instructions and register values that no compiler would make: whatever a guest executes, system/ answers with a step
// that keeps its promises (cpu.hpp), and never with an assertion or an access outside of guest memory.
#include <random>

#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {
namespace {

class HostileTest : public SoftCpuTest {
protected:
    enum class Kind : uint8_t { Real, Protected, ProtectedUser, Long, LongUser, Compatibility };

    void enter(Kind kind) {
        reset_cpu(cpu);
        fill_tables(); // an earlier round may have written anywhere
        io.log.clear();
        cpu.attention = k_attention_kick; // long repetitions stop after a chunk
        switch (kind) {
        case Kind::Real: cpu.rip = 0x5000; break;
        case Kind::Protected: protected32(0); break;
        case Kind::ProtectedUser: protected32(3); break;
        case Kind::Long: long_mode(0); break;
        case Kind::LongUser: long_mode(3); break;
        case Kind::Compatibility:
            long_mode(3);
            load(k_user_code32, k_user_data);
            break;
        }
    }

    // Mostly addresses in RAM and small numbers, sometimes anything.
    uint64_t value() {
        switch (random() % 6) {
        case 0: return random();
        case 1: return random() & 0xFFFFFFFF;
        case 2: return 0x0000'7FFF'FFFF'FFF0 + random() % 32;
        case 3: return k_test_linear - 16 + random() % 32;
        case 4: return random() % 0x200;
        default: return random() % k_ram_size;
        }
    }

    // An opcode that system/ knows, behind random prefixes.
    std::vector<uint8_t> encode() {
        static constexpr uint8_t one_byte[] = {
            0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F, 0x50, 0x58, 0x60, 0x61, 0x62, 0x63, 0x68,
            0x6A, 0x6C, 0x6D, 0x6E, 0x6F, 0x74, 0x7C, 0x8C, 0x8E, 0x8F, 0x9A, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA3, 0xA4,
            0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF, 0xC2, 0xC3, 0xC4, 0xC5, 0xC8, 0xC9, 0xCA, 0xCB, 0xCC,
            0xCD, 0xCE, 0xCF, 0xD4, 0xD5, 0xD6, 0xD7, 0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xE5, 0xE6, 0xE7, 0xE8, 0xE9, 0xEA,
            0xEB, 0xEC, 0xED, 0xEE, 0xEF, 0xF1, 0xF4, 0xF5, 0xF8, 0xFA, 0xFB, 0xFC, 0xFD, 0xFF, 0xFF};
        static constexpr uint8_t two_bytes[] = {0x00, 0x00, 0x01, 0x01, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09,
                                                0x0B, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x84,
                                                0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAE, 0xB2, 0xB4, 0xB5, 0xFF};
        static constexpr uint8_t prefixes[] = {0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x36, 0x64, 0x65, 0xF0, 0x48, 0x41};
        std::vector<uint8_t> bytes;
        for (uint64_t i = random() % 3; i > 0; --i) bytes.push_back(prefixes[random() % std::size(prefixes)]);
        if (random() % 2) {
            bytes.push_back(one_byte[random() % std::size(one_byte)]);
        } else {
            bytes.push_back(0x0F);
            bytes.push_back(two_bytes[random() % std::size(two_bytes)]);
        }
        while (bytes.size() < 15) bytes.push_back(static_cast<uint8_t>(random()));
        return bytes;
    }

    std::mt19937_64 random{20260101};
};

TEST_F(HostileTest, EveryStepKeepsItsPromises) {
    log::set_level(log::Level::Error);
    unsigned executed = 0, faulted = 0;
    for (unsigned round = 0; round < 40'000; ++round) {
        enter(static_cast<Kind>(random() % 6));
        for (auto& reg : cpu.gpr) reg = value();
        if (random() % 4) cpu.reg(Gpr::Rsp) = 0x8000;
        if (random() % 2) cpu.reg(Gpr::Rcx) = random() % 64;
        cpu.rflags = k_fixed_flag | (random() & (k_arithmetic_flags | k_df | k_if | k_iopl | k_nt | k_ac));
        update_mode(cpu);
        for (uint64_t at = 0x7F00; at < 0x8100; at += 8) memory.put<uint64_t>(at, value());
        if (random() % 2) memory.put<uint64_t>(0x8008, (random() % 20) << 3 | random() % 8);

        auto const bytes = encode();
        ZydisDecoder decoder;
        ZydisDecoderInit(&decoder,
                         cpu.mode.code_bits == 64   ? ZYDIS_MACHINE_MODE_LONG_64
                         : cpu.mode.code_bits == 32 ? ZYDIS_MACHINE_MODE_LEGACY_32
                                                    : ZYDIS_MACHINE_MODE_LEGACY_16,
                         cpu.mode.code_bits == 64   ? ZYDIS_STACK_WIDTH_64
                         : cpu.mode.code_bits == 32 ? ZYDIS_STACK_WIDTH_32
                                                    : ZYDIS_STACK_WIDTH_16);
        ZydisDecodedInstruction decoded;
        std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes.data(), bytes.size(), &decoded, operands.data()))) {
            continue;
        }
        ++executed;
        Insn insn{&decoded, operands.data(), {}};
        std::copy(bytes.begin(), bytes.end(), insn.bytes.begin());
        uint64_t const rip = cpu.rip;
        bool const string =
            decoded.meta.category == ZYDIS_CATEGORY_STRINGOP || decoded.meta.category == ZYDIS_CATEGORY_IOSTRINGOP;
        auto const gpr = cpu.gpr;
        auto const segments = cpu.segments;
        uint64_t const flags = cpu.rflags;
        Step const step = execute_system(cpu, insn);
        std::string const what =
            std::string(ZydisMnemonicGetString(decoded.mnemonic)) + " in round " + std::to_string(round);

        Mode const mode = cpu.mode;
        update_mode(cpu);
        ASSERT_EQ(mode, cpu.mode) << what << ": the mode was not brought up to date";
        ASSERT_EQ(cpu.thread_bases[0], cpu.segment(SegmentName::Fs).base) << what;
        ASSERT_EQ(cpu.thread_bases[1], cpu.segment(SegmentName::Gs).base) << what;
        ASSERT_TRUE(cpu.rflags & k_fixed_flag) << what;
        ASSERT_FALSE(cpu.rflags & k_vm) << what;
        if (step == Step::Next) {
            ASSERT_EQ(cpu.rip, (rip + decoded.length) & (cpu.mode.code_bits == 16 ? 0xFFFF : ~uint64_t{0})) << what;
        }
        if (step == Step::Fault) {
            ++faulted;
            ASSERT_EQ(cpu.rip, rip) << what;
            ASSERT_TRUE(cpu.rflags == flags || string) << what;
            for (size_t i = 0; i < segments.size(); ++i) {
                ASSERT_EQ(cpu.segments[i].selector, segments[i].selector) << what;
                ASSERT_EQ(cpu.segments[i].base, segments[i].base) << what;
            }
            if (!string) {
                ASSERT_EQ(cpu.gpr, gpr) << what;
            }
            Step const delivered = deliver_fault(cpu);
            ASSERT_TRUE(delivered == Step::Leave || delivered == Step::Shutdown) << what;
        }
    }
    // The generator must reach both sides often enough to mean something.
    EXPECT_GT(executed, 13'000U);
    EXPECT_GT(faulted, 3'000U);
    EXPECT_LT(faulted, executed);
}

} // namespace
} // namespace coffer::tests
