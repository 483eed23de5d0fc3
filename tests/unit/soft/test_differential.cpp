// Sequences of instructions found in real programs, on random state: the host CPU running them as they are, against
// the translator. Usage with arguments: test_differential FILE SEQUENCES [SEED].
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include <sys/mman.h>

#include "tests/unit/soft/encodings.hpp"
#include "tests/unit/soft/micro_guest.hpp"
#include "tests/unit/soft/native_oracle.hpp"

namespace coffer::tests {
namespace {

using namespace vmm::soft;

constexpr uint64_t k_buffer = 0x2000'0000; // host and guest-linear
constexpr uint64_t k_buffer_gpa = 0x40'0000;
constexpr size_t k_buffer_size = 0x10'0000;
constexpr size_t k_code_area = 0x40'0000; // at k_guest_code + 0x700000

std::string g_file = "/usr/bin/busybox";
size_t g_sequences = 4000;
uint64_t g_seed = 1;

bool is_instruction_pointer(ZydisRegister reg) {
    return reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP;
}

struct Harness {
    MicroGuest guest{size_t{16} << 20};
    NativeOracle oracle;
    std::mt19937_64 random{g_seed};
    std::byte* buffer;
    uint64_t next_code = 0x80'0000;

    Harness() {
        buffer = static_cast<std::byte*>(mmap(reinterpret_cast<void*>(k_buffer), k_buffer_size, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
        guest.long_mode();
        guest.put_value<uint64_t>(k_guest_tables + 0x2000 + (k_buffer >> 21) * 8, k_buffer_gpa | 0x87);
        for (unsigned vector = 0; vector < 32; ++vector) guest.gate(vector, 0x7000 + vector * 16, 0x8E, 1);
        for (unsigned vector = 0; vector < 32; ++vector) {
            std::array<uint8_t, 3> stub{0xE6, static_cast<uint8_t>(k_done_port), 0xF4};
            guest.put(0x7000 + vector * 16, std::as_bytes(std::span(stub)));
        }
    }

    uint64_t value() {
        switch (random() % 4) {
        case 0: return random();
        case 1: return random() % 256;
        case 2: return ~(random() % 256);
        default: return uint64_t{1} << (random() % 64);
        }
    }

    static void mov_imm(std::vector<uint8_t>& code, unsigned reg, uint64_t imm) {
        code.push_back(static_cast<uint8_t>(0x48 | (reg >> 3)));
        code.push_back(static_cast<uint8_t>(0xB8 | (reg & 7)));
        for (int i = 0; i < 8; ++i) code.push_back(static_cast<uint8_t>(imm >> (i * 8)));
    }

    // The instruction, with what points its memory operand into the buffer in front. False: not for this harness.
    bool append(std::vector<uint8_t>& code, Decoded const& d) {
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_RDRAND || d.insn.mnemonic == ZYDIS_MNEMONIC_RDSEED) return false;
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_LEA && is_instruction_pointer(d.operands[1].mem.base)) return false;
        if (d.scrub) return false;
        // TZCNT and LZCNT on the host, where the guest has neither.
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_BSF || d.insn.mnemonic == ZYDIS_MNEMONIC_BSR)
            for (unsigned i = 0; i < d.insn.raw.prefix_count; ++i)
                if (d.insn.raw.prefixes[i].value == 0xF3) return false;
        if (d.memory.present) {
            ZydisDecodedOperandMem const& mem = d.operands[d.memory.operand].mem;
            if (is_instruction_pointer(mem.base) || mem.base == ZYDIS_REGISTER_NONE ||
                d.memory.segment == SegmentName::Fs || d.memory.segment == SegmentName::Gs ||
                d.insn.address_width != 64 || mem.base == mem.index)
                return false;
            bool aligned = random() % 8 != 0;
            uint64_t where = k_buffer + k_buffer_size / 2 + (random() % 0x4000 & (aligned ? ~0x3FULL : ~0ULL));
            uint64_t index = 0;
            if (mem.index != ZYDIS_REGISTER_NONE) {
                index = random() % 512;
                mov_imm(code, gpr_number(mem.index), index);
                index *= mem.scale;
            }
            mov_imm(code, gpr_number(mem.base), where - index - static_cast<uint64_t>(mem.disp.value));
            if (d.bit_string) {
                // The bit index must stay within the buffer; it may be the base or index itself, whose values are
                // large.
                unsigned bit = gpr_number(d.operands[1].reg.value);
                if (bit == gpr_number(mem.base) || (mem.index != ZYDIS_REGISTER_NONE && bit == gpr_number(mem.index)))
                    return false;
                mov_imm(code, bit, static_cast<uint64_t>(static_cast<int64_t>(random() % 8192) - 4096));
            }
        }
        code.insert(code.end(), d.bytes.begin(), d.bytes.begin() + d.length());
        return true;
    }

    void compare(std::vector<uint8_t> const& code) {
        OracleState native;
        for (uint64_t& reg : native.gpr) reg = value();
        native.rflags = 2 | (random() & 0x8D5);
        for (size_t i = 160; i < 160 + 256; ++i) native.fxsave[i] = static_cast<uint8_t>(random());
        uint16_t fcw = 0x37F;
        uint32_t mxcsr = 0x1F80;
        std::memcpy(native.fxsave.data(), &fcw, 2);
        std::memcpy(native.fxsave.data() + 24, &mxcsr, 4);
        for (size_t i = 0; i < 0x6000; i += 8) {
            uint64_t fill = value();
            std::memcpy(buffer + k_buffer_size / 2 - 0x1000 + i, &fill, 8);
        }
        std::memcpy(guest.ram + k_buffer_gpa, buffer, k_buffer_size);

        guest.state.gpr = native.gpr;
        guest.state.rflags = native.rflags;
        std::memcpy(guest.state.fxsave.data(), native.fxsave.data(), 512);
        if (next_code + code.size() + 64 > (size_t{16} << 20)) next_code = 0x80'0000;
        std::vector<uint8_t> with_end(code);
        with_end.insert(with_end.end(), {0xE6, static_cast<uint8_t>(k_done_port), 0xF4});
        guest.put(next_code, std::as_bytes(std::span(with_end)));
        guest.partition->memory_written(GuestPhysAddr(next_code), with_end.size());
        guest.state.rip = next_code;
        guest.state.segment(SegmentName::Cs).selector = 8;
        guest.run();
        uint64_t start = next_code;
        next_code += (with_end.size() + 31) & ~size_t{31};
        bool ok = oracle.run(code, native);
        bool guest_ok = guest.state.rip == start + code.size() + 2;
        ASSERT_EQ(ok, guest_ok);
        if (!ok) {
            // Memory is as it was up to the fault; registers are in the handler.
            ASSERT_EQ(std::memcmp(guest.ram + k_buffer_gpa, buffer, k_buffer_size), 0) << "memory at a fault";
            return;
        }
        for (unsigned i = 0; i < 16; ++i) ASSERT_EQ(guest.state.gpr[i], native.gpr[i]) << "register " << i;
        ASSERT_EQ(guest.state.rflags & 0x8D5, native.rflags & 0x8D5);
        ASSERT_EQ(std::memcmp(guest.ram + k_buffer_gpa, buffer, k_buffer_size), 0) << "memory";
        // Control, status, tag; MXCSR; registers. FOP, FIP and FDP are hidden from the guest.
        ASSERT_EQ(std::memcmp(guest.state.fxsave.data(), native.fxsave.data(), 6), 0) << "x87 state";
        ASSERT_EQ(std::memcmp(guest.state.fxsave.data() + 24, native.fxsave.data() + 24, 4), 0) << "MXCSR";
        ASSERT_EQ(std::memcmp(guest.state.fxsave.data() + 32, native.fxsave.data() + 32, 128 + 256), 0) << "XMM, ST";
    }
};

std::string text(std::vector<uint8_t> const& code) {
    std::string result;
    for (size_t at = 0; at < code.size();) {
        Decoded d{};
        if (decode(64, std::span(code).subspan(at), d) != DecodeStatus::Ok) break;
        ZydisFormatter formatter;
        ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
        char line[128];
        ZydisFormatterFormatInstruction(&formatter, &d.insn, d.operands.data(), d.insn.operand_count_visible, line,
                                        sizeof line, ZYDIS_RUNTIME_ADDRESS_NONE, nullptr);
        result += std::string(line) + "\n";
        at += d.length();
    }
    return result;
}

TEST(Differential, SequencesFromRealPrograms) {
    std::vector<Decoded> pool = plain_encodings(g_file, 100'000);
    ASSERT_GT(pool.size(), 500u);
    Harness harness;
    for (size_t i = 0; i < g_sequences; ++i) {
        std::vector<uint8_t> code;
        size_t length = i < pool.size() && g_sequences >= pool.size() ? 1 : 1 + harness.random() % 12;
        if (length == 1 && i < pool.size()) {
            if (!harness.append(code, pool[i])) continue;
        } else {
            for (size_t n = 0; n < length; ++n)
                if (size_t before = code.size(); !harness.append(code, pool[harness.random() % pool.size()]))
                    code.resize(before);
        }
        harness.compare(code);
        if (::testing::Test::HasFatalFailure()) {
            ADD_FAILURE() << "sequence " << i << ":\n" << text(code);
            return;
        }
    }
}

} // namespace

void set_arguments(int argc, char** argv) {
    if (argc > 1) g_file = argv[1];
    if (argc > 2) g_sequences = std::strtoull(argv[2], nullptr, 0);
    if (argc > 3) g_seed = std::strtoull(argv[3], nullptr, 0);
}

} // namespace coffer::tests

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    coffer::tests::set_arguments(argc, argv);
    return RUN_ALL_TESTS();
}
