// Every distinct instruction encoding of a real program on random state, and sequences of them: the host CPU running
// them as they are, against the translator.
// Arguments: FILE [ENCODINGS [STATES [SEQUENCES [SEED]]]]; ENCODINGS singly in STATES random states each, 0 for all.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include <sys/mman.h>

#include "tests/unit/soft/encodings.hpp"
#include "tests/unit/soft/micro_guest.hpp"
#include "tests/unit/soft/native_oracle.hpp"
#include "tests/unit/soft/planted_fault.hpp"
#include "tests/unit/soft/random_code.hpp"

namespace coffer::tests {
namespace {

using namespace vmm::soft;

constexpr uint64_t k_buffer = 0x2000'0000; // host and guest-linear
constexpr uint64_t k_buffer_gpa = 0x40'0000;
constexpr size_t k_buffer_size = 0x1'0000;
constexpr uint64_t k_segment_base = 0x1000'0000;
constexpr Buffer k_place{k_buffer + 0x4000, 0x4000, k_segment_base};
constexpr uint64_t k_handlers = 0x7000;
constexpr uint64_t k_first_code = 0x80'0000;

std::string g_file = "/usr/bin/busybox";
size_t g_encodings = 3000;
size_t g_states = 1;
size_t g_sequences = 2000;
uint64_t g_seed = 1;

bool has_error_code(unsigned vector) {
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

class Harness {
public:
    std::mt19937_64 random{g_seed};
    CodeMaker maker{random, k_place, true};
    PlantedFault const* fault = nullptr; // in what the guest gets
    size_t planted = 0, runs = 0, faults = 0;

    Harness() : m_guest(size_t{16} << 20), m_oracle(k_segment_base) {
        void* buffer = mmap(reinterpret_cast<void*>(k_buffer), k_buffer_size, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        COFFER_ASSERT(buffer == reinterpret_cast<void*>(k_buffer));
        m_buffer = static_cast<std::byte*>(buffer);
        m_guest.long_mode();
        m_guest.state.segment(SegmentName::Fs).base = k_segment_base;
        m_guest.state.segment(SegmentName::Gs).base = k_segment_base;
        m_guest.put_value<uint64_t>(k_guest_tables + 0x2000 + (k_buffer >> 21) * 8, k_buffer_gpa | 0x87);
        for (unsigned vector = 0; vector < 32; ++vector) {
            m_guest.gate(vector, k_handlers + vector * 16, 0x8E, 1);
            std::array<uint8_t, 3> stub{0xE6, static_cast<uint8_t>(k_done_port), 0xF4};
            m_guest.put(k_handlers + vector * 16, std::as_bytes(std::span(stub)));
        }
    }
    ~Harness() { munmap(m_buffer, k_buffer_size); }

    // Runs both sides from one random state. Empty: they agree; else what differs.
    std::string compare(Program const& program) {
        ++runs;
        OracleState native;
        for (uint64_t& reg : native.gpr) reg = random_value(random);
        native.rflags = 2 | (random() & 0x8D5);
        for (size_t i = 160; i < 160 + 256; i += 8) store(native.fxsave.data() + i, random());
        store<uint16_t>(native.fxsave.data(), 0x37F);
        store<uint32_t>(native.fxsave.data() + 24, 0x1F80);
        for (size_t i = 0x3000; i < 0x9200; i += 8) store(m_buffer + i, random_value(random));
        std::memcpy(m_guest.ram + k_buffer_gpa, m_buffer, k_buffer_size);

        std::vector<uint8_t> code = place(program);
        size_t const size = program.size();
        m_guest.state.gpr = native.gpr;
        m_guest.state.rflags = native.rflags;
        std::memcpy(m_guest.state.fxsave.data(), native.fxsave.data(), 512);
        uint64_t const start = m_guest.state.rip;
        m_guest.state.segment(SegmentName::Cs).selector = 8;
        m_guest.state.segment(SegmentName::Ss) = Segment{0x10, 0xC093, 0xFFFFFFFF, 0};
        m_guest.run();
        if (::testing::Test::HasFatalFailure()) return "the guest did not end";
        CpuState guest = m_guest.state;
        auto const native_code = program.native_at(m_oracle.code_address());
        auto fault_on_host = m_oracle.run(native_code, native);
        uint64_t flags = 0xCD5;

        if (fault_on_host) {
            ++faults;
            if (guest.rip != k_handlers + fault_on_host->vector * 16 + 2)
                return fmt::format("the host raises vector {}, the guest ends at {:#x}", fault_on_host->vector,
                                   guest.rip);
            uint64_t frame = guest.gpr[4] + (has_error_code(fault_on_host->vector) ? 8 : 0);
            uint64_t rip = m_guest.value(frame);
            if (rip != start + fault_on_host->offset)
                return fmt::format("the host's exception is at byte {}, the guest's at {}", fault_on_host->offset,
                                   rip - start);
            guest.rflags = m_guest.value(frame + 16);
            guest.gpr[4] = m_guest.value(frame + 24);
            flags &= ~dead_flags(std::span(native_code).subspan(fault_on_host->offset));
        } else if (guest.rip != start + size + 2) {
            return fmt::format("the host raises nothing, the guest ends at {:#x}, code is at {:#x}", guest.rip, start);
        }
        return difference(guest, native, flags);
    }

    std::string describe(Program const& program) {
        return fmt::format("{}, seed {}:\n{}", g_file, g_seed, disassembly(program.at(k_first_code), k_first_code));
    }

private:
    template <class T = uint64_t, class To>
    static void store(To* to, T value) {
        std::memcpy(to, &value, sizeof value);
    }

    std::vector<uint8_t> place(Program const& program) {
        if (m_next_code + program.size() + 64 > m_guest.size) m_next_code = k_first_code;
        std::vector<uint8_t> code = program.at(m_next_code);
        if (fault) planted += plant(*fault, code);
        code.insert(code.end(), {0xE6, static_cast<uint8_t>(k_done_port), 0xF4});
        m_guest.put(m_next_code, std::as_bytes(std::span(code)));
        m_guest.partition->memory_written(GuestPhysAddr(m_next_code), code.size());
        m_guest.state.rip = m_next_code;
        m_next_code += (code.size() + 31) & ~size_t{31};
        return code;
    }

    std::string difference(CpuState const& guest, OracleState const& native, uint64_t flags) const {
        for (unsigned i = 0; i < 16; ++i)
            if (guest.gpr[i] != native.gpr[i])
                return fmt::format("register {}: {:#x} in the guest, {:#x} on the host", i, guest.gpr[i],
                                   native.gpr[i]);
        if ((guest.rflags ^ native.rflags) & flags)
            return fmt::format("flags {:#x} in the guest, {:#x} on the host, of {:#x}", guest.rflags & flags,
                               native.rflags & flags, flags);
        if (std::memcmp(m_guest.ram + k_buffer_gpa, m_buffer, k_buffer_size) != 0) return "memory";
        // Control, status, tag; MXCSR; registers. FOP, FIP and FDP are hidden from the guest.
        auto same = [&](size_t at, size_t size) {
            return std::memcmp(guest.fxsave.data() + at, native.fxsave.data() + at, size) == 0;
        };
        if (!same(0, 6)) return "x87 control, status or tags";
        if (!same(24, 4)) return "MXCSR";
        if (!same(32, 128)) return "x87 registers";
        if (!same(160, 256)) return "XMM registers";
        return {};
    }

    MicroGuest m_guest;
    NativeOracle m_oracle;
    std::byte* m_buffer;
    uint64_t m_next_code = k_first_code;
};

TEST(Differential, EncodingsOfARealProgram) {
    auto const started = std::chrono::steady_clock::now();
    std::vector<Decoded> pool = distinct_encodings(g_file, 1'000'000);
    ASSERT_GT(pool.size(), 500U) << g_file << " has no code";
    size_t const distinct = pool.size();
    Harness harness;
    if (g_encodings && g_encodings < pool.size()) {
        std::shuffle(pool.begin(), pool.end(), harness.random);
        pool.resize(g_encodings);
    }
    std::map<std::string_view, size_t> left_out;
    size_t run = 0;
    for (Decoded const& d : pool) {
        // Operands lie elsewhere in each state.
        for (size_t state = 0; state < g_states; ++state) {
            Program program;
            if (auto reason = harness.maker.append(program, d)) {
                ++left_out[*reason];
                break;
            }
            if (state == 0 && ++run % 10'000 == 0) {
                std::printf("%zu of %zu encodings\n", run, pool.size());
                std::fflush(stdout);
            }
            auto difference = harness.compare(program);
            ASSERT_EQ(difference, "") << harness.describe(program);
        }
    }
    std::printf("%s: %zu distinct encodings, %zu of them taken: %zu run, in %zu states each; %zu runs ended in an "
                "exception\n",
                g_file.c_str(), distinct, pool.size(), run, g_states, harness.faults);
    for (auto const& [reason, count] : left_out)
        std::printf("  left out: %zu, %.*s\n", count, static_cast<int>(reason.size()), reason.data());
    std::printf("took %.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    // Most of a real program's encodings must have been compared.
    EXPECT_GT(run, pool.size() / 2);
}

TEST(Differential, SequencesFromRealPrograms) {
    std::vector<Decoded> pool = plain_encodings(g_file, 1'000'000);
    ASSERT_GT(pool.size(), 500U);
    Harness harness;
    for (size_t i = 0; i < g_sequences; ++i) {
        Program program;
        for (size_t length = 2 + harness.random() % 12; length > 0; --length)
            (void)harness.maker.append(program, pool[harness.random() % pool.size()]);
        auto difference = harness.compare(program);
        ASSERT_EQ(difference, "") << "sequence " << i << ", " << harness.describe(program);
    }
    std::printf("%zu sequences, %zu ended in an exception\n", harness.runs, harness.faults);
}

// Each wrong encoding, by itself, is noticed; without it there is nothing to notice.
TEST(Differential, PlantedFaultsAreCaught) {
    std::vector<Decoded> pool = plain_encodings("/proc/self/exe", 100'000);
    for (PlantedFault const& fault : k_planted_faults) {
        Harness harness;
        size_t caught = 0;
        for (Decoded const& d : pool) {
            if (d.insn.mnemonic != fault.from) continue;
            Program program;
            if (harness.maker.append(program, d)) continue;
            harness.fault = nullptr;
            ASSERT_EQ(harness.compare(program), "") << harness.describe(program);
            harness.fault = &fault;
            for (int state = 0; state < 4; ++state) caught += !harness.compare(program).empty();
            if (caught >= 10) break;
        }
        EXPECT_GT(harness.planted, 0U) << ZydisMnemonicGetString(fault.from);
        EXPECT_GT(caught, 0U) << ZydisMnemonicGetString(fault.from) << " run as " << ZydisMnemonicGetString(fault.to);
    }
}

} // namespace

void set_arguments(int argc, char** argv) {
    if (argc > 1) g_file = argv[1];
    if (argc > 2) g_encodings = std::strtoull(argv[2], nullptr, 0);
    if (argc > 3) g_states = std::strtoull(argv[3], nullptr, 0);
    if (argc > 4) g_sequences = std::strtoull(argv[4], nullptr, 0);
    if (argc > 5) g_seed = std::strtoull(argv[5], nullptr, 0);
}

} // namespace coffer::tests

int main(int argc, char** argv) {
    ::testing::InitGoogleTest(&argc, argv);
    coffer::tests::set_arguments(argc, argv);
    return RUN_ALL_TESTS();
}
