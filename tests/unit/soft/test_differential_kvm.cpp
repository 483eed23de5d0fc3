// Random code at CPL 3, with loops, calls and indirect jumps, on KVM and on the software CPU from one state.
// Arguments: FILE [SEQUENCES [SEED]]: where the instructions are taken from.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <string>

#include "tests/unit/kvm/micro_guest.hpp"
#include "tests/unit/soft/planted_fault.hpp"
#include "tests/unit/soft/random_code.hpp"

namespace coffer::tests {
namespace {

using namespace vmm;
using namespace vmm::soft;

// In the RAM of MicroGuest, which is mapped to itself for everyone.
constexpr uint64_t k_payload = 0x1'0000, k_payload_size = 0x8000;
constexpr uint64_t k_buffer = 0x4'0000, k_buffer_size = 0x1'0000;
constexpr uint64_t k_counters = 0x5'8000; // of loops; jump tables
constexpr uint64_t k_user_stack = 0x6'0000;
constexpr uint64_t k_compared_first = k_buffer, k_compared_size = 0x2'4000; // buffer, counters, both stacks
constexpr uint64_t k_handler_stack = 0x6'3000, k_handlers = 0x2000, k_idt = 0x3000, k_tss = 0x4000;
constexpr Buffer k_place{k_buffer + 0x4000, 0x4000, 0x3'0000};

std::string g_file = "/usr/bin/busybox";
size_t g_sequences = 400;
uint64_t g_seed = 1;

class Generator {
public:
    Generator(std::mt19937_64& random, std::vector<Decoded> const& pool)
        : m_random(random), m_pool(pool), m_maker(random, k_place, false) {}

    Program make() {
        Program program;
        m_counter = k_counters;
        for (size_t pieces = 2 + m_random() % 6; pieces > 0; --pieces) piece(program);
        // mov [k_end_address], al: ends the run, changes nothing. The jump behind it keeps all flags alive.
        program.put({0xA2});
        program.put_le(k_end_address, 8);
        program.put({0xEB, 0xFE});
        return program;
    }

private:
    void instructions(Program& program, size_t most) {
        for (size_t n = 1 + m_random() % most; n > 0; --n)
            (void)m_maker.append(program, m_pool[m_random() % m_pool.size()]);
    }
    void jcc(Program& program) {
        bool near = m_random() % 2;
        int condition = static_cast<int>(m_random() % 16);
        if (near)
            program.put({0x0F, 0x80 | condition});
        else
            program.put({0x70 | condition});
        size_t const bytes = near ? 4 : 1, at = program.size();
        program.put_le(0, bytes);
        instructions(program, near ? 6 : 2);
        program.patch_jump(at, bytes, program.size());
    }
    void loop(Program& program) {
        uint64_t const counter = m_counter;
        m_counter += 8;
        program.put({0xC7, 0x05}); // mov dword [counter], n
        program.put_relative(counter, 4);
        program.put_le(2 + m_random() % 40, 4);
        size_t const again = program.size();
        instructions(program, 5);
        if (m_random() % 2) jcc(program);
        program.put({0xFF, 0x0D}); // dec dword [counter]
        program.put_relative(counter);
        program.put({0x0F, 0x85}); // jnz again
        size_t const at = program.size();
        program.put_le(0, 4);
        program.patch_jump(at, 4, again);
    }
    void loop_rcx(Program& program) {
        program.mov_imm(1, 1 + m_random() % 30);
        size_t const again = program.size();
        program.put({0x48, 0x8D, 0x04, 0x48, 0xE2}); // lea rax, [rax + rcx*2]; loop again
        program.put_le(0, 1);
        program.patch_jump(program.size() - 1, 1, again);
    }
    void call(Program& program) {
        program.mov_imm(4, k_user_stack);
        bool const indirect = m_random() % 2;
        size_t lea = 0;
        if (indirect) {
            program.put({0x4C, 0x8D, 0x15}); // lea r10, [function]
            lea = program.size();
            program.put_le(0, 4);
            program.put({0x41, 0xFF, 0xD2}); // call r10
        } else {
            program.put({0xE8});
            lea = program.size();
            program.put_le(0, 4);
        }
        program.put({0xE9}); // jmp over
        size_t const over = program.size();
        program.put_le(0, 4);
        program.patch_jump(lea, 4, program.size());
        instructions(program, 4);
        program.mov_imm(4, k_user_stack - 8);
        if (m_random() % 2)
            program.put({0xC3});
        else
            program.put({0xC2, 0x10, 0x00});
        program.patch_jump(over, 4, program.size());
    }
    void jump_through_memory(Program& program) {
        program.put({0x4C, 0x8D, 0x1D}); // lea r11, [over]
        size_t const lea = program.size();
        program.put_le(0, 4);
        program.put({0x4C, 0x89, 0x1D}); // mov [slot], r11
        program.put_relative(m_counter);
        program.put({0xFF, 0x25}); // jmp [slot]
        program.put_relative(m_counter);
        m_counter += 8;
        instructions(program, 2);
        program.patch_jump(lea, 4, program.size());
    }
    void stack(Program& program) {
        program.mov_imm(4, k_user_stack);
        program.put({0x9C, 0x50 | static_cast<int>(m_random() % 8), 0x68}); // pushfq; push reg; push imm32
        program.put_le(m_random(), 4);
        program.put({0x41, 0x58, 0x8F, 0x05}); // pop r8; pop [slot]
        program.put_relative(m_counter);
        m_counter += 8;
    }
    void piece(Program& program) {
        switch (m_random() % 8) {
        case 0: return jcc(program);
        case 1: return loop(program);
        case 2: return loop_rcx(program);
        case 3: return call(program);
        case 4: return jump_through_memory(program);
        case 5: return stack(program);
        default: return instructions(program, 8);
        }
    }

    std::mt19937_64& m_random;
    std::vector<Decoded> const& m_pool;
    CodeMaker m_maker;
    uint64_t m_counter = k_counters;
};

// One of the two sides.
class Side {
public:
    explicit Side(MicroGuest::Create create) : guest(1, create) {
        for (unsigned vector = 0; vector < 32; ++vector) {
            uint64_t handler = k_handlers + vector * 16;
            load(guest.ram, handler, {0xE6, k_end_port, 0xF4}); // out; hlt
            store_le<uint64_t>(guest.ram.bytes(), k_idt + vector * 16,
                               (handler & 0xFFFF) | uint64_t{k_code64} << 16 | uint64_t{1} << 32 |
                                   uint64_t{0x8E} << 40);
        }
        store_le<uint64_t>(guest.ram.bytes(), k_tss + 0x24, k_handler_stack); // IST1
        m_start = user_mode(must(guest.cpu().get_state()));
        m_start.cr0 |= 0x22; // NE, MP
        m_start.idtr = {k_idt, 0x1FF};
        m_start.tr = {0x30, 0x8B, 0x67, k_tss};
        m_start.segment(SegmentName::Fs).base = k_place.segment;
        m_start.segment(SegmentName::Gs).base = k_place.segment;
    }
    CpuState run(std::vector<uint8_t> const& code, CpuState const& registers, Bytes memory) {
        std::memcpy(guest.ram.data() + k_compared_first, memory.data(), memory.size());
        std::memcpy(guest.ram.data() + k_payload, code.data(), code.size());
        guest.partition->memory_written(GuestPhysAddr(k_payload), code.size());
        CpuState state = m_start;
        state.gpr = registers.gpr;
        state.rflags = registers.rflags;
        state.fxsave = registers.fxsave;
        state.rip = k_payload;
        must(guest.cpu().set_state(state));
        guest.ended = false;
        auto exit = guest.cpu().run();
        COFFER_ASSERT(guest.ended || !exit || *exit != VcpuExit::Kicked);
        if (!exit) ADD_FAILURE() << exit.error().message();
        return must(guest.cpu().get_state());
    }
    Bytes memory() { return Bytes(guest.ram.data() + k_compared_first, k_compared_size); }

    MicroGuest guest;

private:
    CpuState m_start;
};

class Harness {
public:
    std::mt19937_64 random{g_seed};
    PlantedFault const* fault = nullptr; // in what the software CPU gets
    size_t planted = 0, exceptions = 0, refused = 0;

    // Empty: both sides agree, or KVM refused. A nested KVM without VT-x or AMD-V takes some code of CPL 3 through its
    // instruction emulator, after an exception above all, and that answers what it does not know with #UD. Where ring 0
    // runs on the CPU, KVM has no such excuse.
    std::string compare(Program const& program) {
        CpuState registers;
        for (uint64_t& reg : registers.gpr) reg = random_value(random);
        // IF is set, as every program's is; some hosts show CPL 3 nothing else.
        registers.rflags = 0x202 | (random() & 0x8D5);
        registers.fxsave = {};
        store(registers.fxsave.data(), uint16_t{0x37F});
        store(registers.fxsave.data() + 24, uint32_t{0x1F80});
        for (size_t i = 160; i < 160 + 256; i += 8) store(registers.fxsave.data() + i, random());
        ByteVector memory(k_compared_size);
        for (size_t i = 0x3000; i < 0x9200; i += 8) store(memory.data() + i, random_value(random));
        std::vector<uint8_t> code = program.at(k_payload);
        COFFER_ASSERT(code.size() <= k_payload_size);
        std::vector<uint8_t> soft_code(code);
        if (fault) planted += plant(*fault, soft_code);
        CpuState const soft = m_soft.run(soft_code, registers, memory);
        if (m_stale) m_kvm.emplace(create_kvm_partition);
        CpuState const kvm = m_kvm->run(code, registers, memory);
        m_stale = kvm.rip < k_payload;
        if (kvm.rip == handler_end(6) && soft.rip != handler_end(6) &&
            !m_kvm->guest.partition->capabilities().native_ring0) {
            ++refused;
            return {};
        }
        return difference(kvm, soft);
    }

private:
    static uint64_t handler_end(unsigned vector) { return k_handlers + vector * 16 + 2; }
    static uint64_t frame_rip(Side& side) { return load_le<uint64_t>(side.guest.ram.bytes(), k_handler_stack - 40); }
    template <class T, class To>
    static void store(To* to, T value) {
        std::memcpy(to, &value, sizeof value);
    }
    std::string difference(CpuState const& kvm, CpuState const& soft) {
        if (kvm.rip != soft.rip)
            return fmt::format(
                "ends at {:#x} on KVM, at {:#x} here, with RSP {:#x} and {:#x}; exception frames have {:#x} "
                "and {:#x}",
                kvm.rip, soft.rip, kvm.gpr[4], soft.gpr[4], frame_rip(*m_kvm), frame_rip(m_soft));
        bool const exception = kvm.rip < k_payload;
        exceptions += exception;
        for (unsigned i = 0; i < 16; ++i)
            if (kvm.gpr[i] != soft.gpr[i])
                return fmt::format("register {}: {:#x} on KVM, {:#x} here", i, kvm.gpr[i], soft.gpr[i]);
        if (!exception && ((kvm.rflags ^ soft.rflags) & 0xCD5))
            return fmt::format("flags: {:#x} on KVM, {:#x} here", kvm.rflags & 0xCD5, soft.rflags & 0xCD5);
        if (kvm.segment(SegmentName::Cs).selector != soft.segment(SegmentName::Cs).selector) return "CS";
        Bytes a = m_kvm->memory(), b = m_soft.memory();
        for (size_t i = 0; i < a.size(); ++i) {
            uint64_t const address = k_compared_first + i;
            // Dead flags in an exception's frame may be others (random_code.hpp).
            if (exception && address == k_handler_stack - 24) i += 8;
            if (a[i] != b[i])
                return fmt::format("memory at {:#x}: {:#x} on KVM, {:#x} here", k_compared_first + i,
                                   static_cast<unsigned>(a[i]), static_cast<unsigned>(b[i]));
        }
        auto same = [&](size_t at, size_t size) {
            return std::memcmp(kvm.fxsave.data() + at, soft.fxsave.data() + at, size) == 0;
        };
        if (!same(0, 6)) return "x87 control, status or tags";
        if (!same(24, 4)) return "MXCSR";
        if (!same(32, 128)) return "x87 registers";
        if (!same(160, 256)) return "XMM registers";
        return {};
    }

    std::optional<Side> m_kvm;
    Side m_soft{create_soft_partition};
    bool m_stale = true;
};

std::string describe(Program const& program) {
    return fmt::format("{}, seed {}:\n{}", g_file, g_seed, disassembly(program.at(k_payload), k_payload));
}

TEST(DifferentialKvm, RandomProgramsOfCpl3) {
    auto const started = std::chrono::steady_clock::now();
    std::vector<Decoded> pool = plain_encodings(g_file, 1'000'000);
    ASSERT_GT(pool.size(), 500U) << g_file << " has no code";
    Harness harness;
    Generator generator(harness.random, pool);
    for (size_t i = 0; i < g_sequences; ++i) {
        Program program = generator.make();
        std::string difference = harness.compare(program);
        ASSERT_EQ(difference, "") << "sequence " << i << ", " << describe(program);
    }
    std::printf("%s: %zu encodings, %zu programs, %zu ended in an exception, %zu not compared because this host's KVM "
                "refused what its CPU can; took %.1f s\n",
                g_file.c_str(), pool.size(), g_sequences, harness.exceptions, harness.refused,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    EXPECT_LT(harness.exceptions + harness.refused, g_sequences / 2 + 1);
}

TEST(DifferentialKvm, PlantedFaultsAreCaught) {
    std::vector<Decoded> pool = plain_encodings("/proc/self/exe", 100'000);
    for (PlantedFault const& fault : k_planted_faults) {
        std::vector<Decoded> few;
        for (Decoded const& d : pool)
            if (d.insn.mnemonic == fault.from && few.size() < 20) few.push_back(d);
        ASSERT_FALSE(few.empty()) << ZydisMnemonicGetString(fault.from);
        Harness harness;
        Generator generator(harness.random, few);
        size_t caught = 0;
        for (int i = 0; i < 40 && caught < 3; ++i) {
            Program program = generator.make();
            harness.fault = nullptr;
            ASSERT_EQ(harness.compare(program), "") << describe(program);
            harness.fault = &fault;
            caught += !harness.compare(program).empty();
        }
        EXPECT_GT(harness.planted, 0U) << ZydisMnemonicGetString(fault.from);
        EXPECT_GT(caught, 0U) << ZydisMnemonicGetString(fault.from) << " run as " << ZydisMnemonicGetString(fault.to);
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
    if (!coffer::tests::have_kvm()) {
        std::puts("skipped: /dev/kvm is absent on this host");
        return 77; // meson's sign of a skipped test
    }
    return RUN_ALL_TESTS();
}
