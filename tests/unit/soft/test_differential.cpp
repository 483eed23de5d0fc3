// Sequences of instructions found in real programs, on random state: the host CPU running them as they are, against
// the translator, and CPL 3 under /dev/kvm against both. Arguments: FILE SEQUENCES [SEED]; FILE is an ELF file or a
// bzImage.
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
constexpr size_t k_buffer_size = 0x8000;

std::string g_file = "/usr/bin/busybox";
size_t g_sequences = 4000;
uint64_t g_seed = 1;

bool is_instruction_pointer(ZydisRegister reg) {
    return reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP;
}

using Sequence = std::vector<uint8_t>;

// What a run leaves.
struct Outcome {
    bool faulted = false;
    OracleState state;
    std::vector<std::byte> memory;
};

// Nothing, or the first difference. The state behind a fault is the handler's; memory is as it was up to the fault.
std::string difference(Outcome const& a, Outcome const& b) {
    if (a.faulted != b.faulted) return a.faulted ? "the first faults" : "the second faults";
    if (a.memory != b.memory) return "memory differs";
    if (a.faulted) return "";
    for (size_t i = 0; i < 16; ++i)
        if (a.state.gpr[i] != b.state.gpr[i])
            return fmt::format("register {}: {:#x}, {:#x}", i, a.state.gpr[i], b.state.gpr[i]);
    if ((a.state.rflags ^ b.state.rflags) & 0x8D5)
        return fmt::format("flags: {:#x}, {:#x}", a.state.rflags & 0x8D5, b.state.rflags & 0x8D5);
    auto same = [&](size_t first, size_t size) {
        return std::memcmp(a.state.fxsave.data() + first, b.state.fxsave.data() + first, size) == 0;
    };
    // FOP, FIP and FDP are hidden from the guest.
    if (!same(0, 6)) return "x87 control, status or tags differ";
    if (!same(24, 4)) return "MXCSR differs";
    if (!same(32, 128)) return "x87 registers differ";
    if (!same(160, 256)) return "XMM registers differ";
    return "";
}

// Runs at CPL 3, in a guest on either backend.
class GuestRunner {
public:
    explicit GuestRunner(MicroGuest::Create create) : m_guest(size_t{16} << 20, create) {
        m_guest.long_mode();
        m_guest.user_mode();
        m_guest.put_value<uint64_t>(k_guest_tables + 0x2000 + (k_buffer >> 21) * 8, k_buffer_gpa | 0x87);
        std::array<uint8_t, 3> stub{0xE6, static_cast<uint8_t>(k_done_port), 0xF4};
        m_guest.put(0x7000, std::as_bytes(std::span(stub)));
        for (unsigned vector = 0; vector < 32; ++vector) {
            m_guest.put(0x7000 + vector * 16, std::as_bytes(std::span(stub)));
            m_guest.gate(vector, 0x7000 + vector * 16, 0x8E, 1);
        }
        m_start = m_guest.state;
    }

    Outcome run(Sequence code, OracleState const& state, std::span<std::byte const> memory) {
        // mov [k_done_address], eax
        code.insert(code.end(), {0x89, 0x04, 0x25, 0x00, 0xF0, 0xFF, 0x3F});
        if (m_next_code + code.size() > m_guest.size) m_next_code = k_first_code;
        uint64_t at = m_next_code;
        m_next_code += (code.size() + 31) & ~size_t{31};
        m_guest.put(at, std::as_bytes(std::span(code)));
        m_guest.partition->memory_written(GuestPhysAddr(at), code.size());
        std::memcpy(m_guest.ram + k_buffer_gpa, memory.data(), memory.size());

        m_guest.state = m_start;
        m_guest.state.gpr = state.gpr;
        m_guest.state.rflags = state.rflags;
        std::memcpy(m_guest.state.fxsave.data(), state.fxsave.data(), 512);
        m_guest.state.rip = at;
        m_guest.run();
        Outcome outcome;
        outcome.faulted = m_guest.state.rip != at + code.size();
        outcome.state.gpr = m_guest.state.gpr;
        outcome.state.rflags = m_guest.state.rflags;
        std::memcpy(outcome.state.fxsave.data(), m_guest.state.fxsave.data(), 512);
        outcome.memory.assign(m_guest.ram + k_buffer_gpa, m_guest.ram + k_buffer_gpa + memory.size());
        return outcome;
    }

private:
    static constexpr uint64_t k_first_code = 0x80'0000;

    MicroGuest m_guest;
    CpuState m_start;
    uint64_t m_next_code = k_first_code;
};

class HostRunner {
public:
    HostRunner()
        : m_buffer(
              static_cast<std::byte*>(mmap(reinterpret_cast<void*>(k_buffer), k_buffer_size, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0))) {}
    ~HostRunner() { munmap(m_buffer, k_buffer_size); }

    Outcome run(Sequence const& code, OracleState const& state, std::span<std::byte const> memory) {
        std::memcpy(m_buffer, memory.data(), memory.size());
        Outcome outcome;
        outcome.state = state;
        outcome.faulted = !m_oracle.run(code, outcome.state);
        outcome.memory.assign(m_buffer, m_buffer + memory.size());
        return outcome;
    }

private:
    std::byte* m_buffer;
    NativeOracle m_oracle;
};

class Generator {
public:
    explicit Generator(uint64_t seed) : m_random(seed), m_memory(k_buffer_size) {}

    size_t below(size_t limit) { return m_random() % limit; }

    // The instruction, with what points its memory operand into the buffer in front. False: not for this harness.
    bool append(Sequence& code, Decoded const& d) {
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_RDRAND || d.insn.mnemonic == ZYDIS_MNEMONIC_RDSEED) return false;
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_LEA && is_instruction_pointer(d.operands[1].mem.base)) return false;
        if (d.scrub) return false;
        // 0F 0D of a register: a NOP by Intel's manual, #UD on AMD.
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_NOP && d.insn.opcode == 0x0D) return false;
        // TZCNT and LZCNT on the host, where the guest has neither.
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_BSF || d.insn.mnemonic == ZYDIS_MNEMONIC_BSR)
            for (unsigned i = 0; i < d.insn.raw.prefix_count; ++i)
                if (d.insn.raw.prefixes[i].value == 0xF3) return false;
        if (d.memory.present && !point(code, d)) return false;
        code.insert(code.end(), d.bytes.begin(), d.bytes.begin() + d.length());
        return true;
    }

    OracleState state() {
        OracleState state;
        for (uint64_t& reg : state.gpr) reg = value();
        state.rflags = 0x202 | (m_random() & 0x8D5);
        for (size_t i = 160; i < 160 + 256; ++i) state.fxsave[i] = static_cast<uint8_t>(m_random());
        uint16_t fcw = 0x37F;
        uint32_t mxcsr = 0x1F80;
        std::memcpy(state.fxsave.data(), &fcw, 2);
        std::memcpy(state.fxsave.data() + 24, &mxcsr, 4);
        return state;
    }

    std::span<std::byte const> memory() {
        for (size_t i = 0; i < m_memory.size(); i += 8) {
            uint64_t fill = value();
            std::memcpy(m_memory.data() + i, &fill, 8);
        }
        return m_memory;
    }

private:
    uint64_t value() {
        switch (m_random() % 4) {
        case 0: return m_random();
        case 1: return m_random() % 256;
        case 2: return ~(m_random() % 256);
        default: return uint64_t{1} << (m_random() % 64);
        }
    }

    static void mov_imm(Sequence& code, unsigned reg, uint64_t imm) {
        code.push_back(static_cast<uint8_t>(0x48 | (reg >> 3)));
        code.push_back(static_cast<uint8_t>(0xB8 | (reg & 7)));
        for (int i = 0; i < 8; ++i) code.push_back(static_cast<uint8_t>(imm >> (i * 8)));
    }

    bool point(Sequence& code, Decoded const& d) {
        ZydisDecodedOperandMem const& mem = d.operands[d.memory.operand].mem;
        if (is_instruction_pointer(mem.base) || mem.base == ZYDIS_REGISTER_NONE ||
            d.memory.segment == SegmentName::Fs || d.memory.segment == SegmentName::Gs || d.insn.address_width != 64 ||
            mem.base == mem.index)
            return false;
        bool aligned = m_random() % 8 != 0;
        uint64_t where = k_buffer + k_buffer_size / 2 + (m_random() % 0x1800 & (aligned ? ~0x3FULL : ~0ULL));
        uint64_t index = 0;
        if (mem.index != ZYDIS_REGISTER_NONE) {
            index = m_random() % 256;
            mov_imm(code, gpr_number(mem.index), index);
            index *= mem.scale;
        }
        mov_imm(code, gpr_number(mem.base), where - index - static_cast<uint64_t>(mem.disp.value));
        if (!d.bit_string) return true;
        // The bit index must stay within the buffer; it may be the base or index itself, whose values are large.
        unsigned bit = gpr_number(d.operands[1].reg.value);
        if (bit == gpr_number(mem.base) || (mem.index != ZYDIS_REGISTER_NONE && bit == gpr_number(mem.index)))
            return false;
        mov_imm(code, bit, static_cast<uint64_t>(static_cast<int64_t>(m_random() % 8192) - 4096));
        return true;
    }

    std::mt19937_64 m_random;
    std::vector<std::byte> m_memory;
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
        for (unsigned i = 0; i < d.length(); ++i) result += fmt::format("{:02x}", d.bytes[i]);
        result += std::string(" ") + line + "\n";
        at += d.length();
    }
    return result;
}

// Each encoding alone, then mixtures of them.
Sequence next_sequence(Generator& generator, std::vector<Decoded> const& pool, size_t i, size_t total) {
    Sequence code;
    if (i < pool.size() && total > pool.size()) {
        if (!generator.append(code, pool[i])) code.clear();
        return code;
    }
    for (size_t n = 1 + generator.below(12); n > 0; --n)
        if (size_t before = code.size(); !generator.append(code, pool[generator.below(pool.size())]))
            code.resize(before);
    return code;
}

TEST(Differential, TranslatorAgainstHost) {
    std::vector<Decoded> pool = plain_encodings(g_file, 100'000);
    ASSERT_GT(pool.size(), 500u);
    Generator generator(g_seed);
    HostRunner host;
    GuestRunner guest(create_soft_partition);
    for (size_t i = 0; i < g_sequences; ++i) {
        Sequence code = next_sequence(generator, pool, i, g_sequences);
        if (code.empty()) continue;
        OracleState state = generator.state();
        auto memory = generator.memory();
        Outcome translated = guest.run(code, state, memory);
        ASSERT_EQ(difference(translated, host.run(code, state, memory)), "") << "sequence " << i << ":\n" << text(code);
    }
}

TEST(Differential, TranslatorAgainstKvm) {
    if (auto kvm = create_kvm_partition({}); !kvm) GTEST_SKIP() << kvm.error().message();
    std::vector<Decoded> pool = plain_encodings(g_file, 100'000);
    // A nested KVM without VT-x or AMD-V takes some CPL 3 code through its emulator, which knows few of these.
    std::erase_if(pool, [](Decoded const& d) {
        return d.fpu != FpuUse::None || d.insn.mnemonic == ZYDIS_MNEMONIC_POPCNT ||
               d.insn.mnemonic == ZYDIS_MNEMONIC_CRC32 || d.insn.mnemonic == ZYDIS_MNEMONIC_MOVBE ||
               d.insn.mnemonic == ZYDIS_MNEMONIC_NOP || d.insn.mnemonic == ZYDIS_MNEMONIC_PAUSE ||
               d.insn.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
    });
    ASSERT_GT(pool.size(), 500u);
    Generator generator(g_seed + 1);
    GuestRunner kvm(create_kvm_partition);
    GuestRunner soft(create_soft_partition);
    for (size_t i = 0; i < g_sequences / 10; ++i) {
        Sequence code = next_sequence(generator, pool, pool.size(), g_sequences);
        OracleState state = generator.state();
        auto memory = generator.memory();
        Outcome translated = soft.run(code, state, memory);
        // Faults are compared with the host: after one, nested KVM goes on at CPL 3 through its emulator for a while.
        if (translated.faulted) continue;
        ASSERT_EQ(difference(translated, kvm.run(code, state, memory)), "") << "sequence " << i << ":\n" << text(code);
    }
}

// The comparison finds a translator that is wrong in one bit: here the guest runs something else than the host.
TEST(Differential, PlantedFaultsAreCaught) {
    struct Plant {
        Sequence right, wrong;
    };
    Generator generator(g_seed);
    HostRunner host;
    GuestRunner guest(create_soft_partition);
    for (Plant const& plant : std::vector<Plant>{
             {{0x48, 0x01, 0xD8}, {0x48, 0x29, 0xD8}},                         // add, sub
             {{0x48, 0x01, 0xD8}, {0x01, 0xD8}},                               // a lost REX.W
             {{0x4C, 0x01, 0xF0}, {0x48, 0x01, 0xF0}},                         // a lost REX.R
             {{0x48, 0xD3, 0xE0}, {0x48, 0xD3, 0xC0}},                         // shl, rol
             {{0x66, 0x0F, 0xFE, 0xC1}, {0x66, 0x0F, 0xFD, 0xC1}},             // paddd, paddw
             {{0x39, 0xD8, 0x0F, 0x92, 0xC1}, {0x39, 0xD8, 0x0F, 0x96, 0xC1}}, // setb, setbe
             {{0xD9, 0xE8}, {0xD9, 0xEB}},                                     // fld1, fldpi
             {{0x48, 0xB8, 0, 0, 8, 0x20, 0, 0, 0, 0, 0x89, 0x18},
              {0x48, 0xB8, 0, 0, 8, 0x20, 0, 0, 0, 0, 0x66, 0x89, 0x18}},      // a narrower store
             {{0x48, 0x8D, 0x44, 0x5B, 0x08}, {0x48, 0x8D, 0x44, 0x5B, 0x10}}, // a wrong displacement
         }) {
        bool caught = false;
        // Equal operands hide some; sixteen random states do not.
        for (unsigned tries = 0; tries < 16 && !caught; ++tries) {
            OracleState state = generator.state();
            auto memory = generator.memory();
            caught = difference(guest.run(plant.wrong, state, memory), host.run(plant.right, state, memory)) != "";
        }
        EXPECT_TRUE(caught) << text(plant.right) << "as\n" << text(plant.wrong);
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
