// String instructions and port I/O: exact registers at faults, overlap, direction, address sizes.
#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {
namespace {

constexpr uint64_t k_frame = 0x20000;

class StringTest : public SoftCpuTest {
protected:
    void set(uint64_t source, uint64_t target, uint64_t count) {
        cpu.reg(Gpr::Rsi) = source;
        cpu.reg(Gpr::Rdi) = target;
        cpu.reg(Gpr::Rcx) = count;
    }
    void fill(uint64_t gpa, size_t size, uint8_t first = 1) {
        for (size_t i = 0; i < size; ++i) memory.put<uint8_t>(gpa + i, static_cast<uint8_t>(first + i));
    }
    // What one element after the other gives.
    void reference_move(std::vector<uint8_t>& ram, uint64_t from, uint64_t to, uint64_t count, size_t size, bool down) {
        for (uint64_t i = 0; i < count; ++i) {
            std::array<uint8_t, 8> value;
            uint64_t const step = down ? uint64_t{0} - i * size : i * size;
            std::memcpy(value.data(), ram.data() + (from + step), size);
            std::memcpy(ram.data() + (to + step), value.data(), size);
        }
    }
};

TEST_F(StringTest, RepeatedMovesMatchTheReference) {
    long_mode(0);
    struct Form {
        std::vector<uint8_t> bytes;
        size_t size;
    };
    std::array<Form, 4> const forms{Form{{0xF3, 0xA4}, 1}, Form{{0xF3, 0x66, 0xA5}, 2}, Form{{0xF3, 0xA5}, 4},
                                    Form{{0xF3, 0x48, 0xA5}, 8}};
    uint64_t const base = 0x40000;
    for (Form const& form : forms) {
        for (int64_t distance : {-4099, -9, -8, -3, -1, 0, 1, 2, 3, 7, 8, 9, 16, 100, 4096, 9000}) {
            for (bool down : {false, true}) {
                uint64_t const count = 9001 / form.size;
                uint64_t const from = base + 0x8003 + (down ? count * form.size : 0);
                auto const to = from + static_cast<uint64_t>(distance);
                for (size_t i = 0; i < 0x20000; ++i)
                    memory.put<uint8_t>(base + i, static_cast<uint8_t>(i * 31 + i / 256));
                std::vector<uint8_t> expected(base + 0x20000);
                std::memcpy(expected.data() + base, memory.at(base), 0x20000);
                reference_move(expected, from, to, count, form.size, down);
                set(from, to, count);
                cpu.rflags = down ? cpu.rflags | k_df : cpu.rflags & ~k_df;
                ASSERT_EQ(run(form.bytes), Step::Next);
                cpu.rip = 0x5000;
                ASSERT_EQ(std::memcmp(expected.data() + base, memory.at(base), 0x20000), 0)
                    << "element " << form.size << " distance " << distance << " down " << down;
                uint64_t const moved = down ? uint64_t{0} - count * form.size : count * form.size;
                EXPECT_EQ(cpu.reg(Gpr::Rsi), from + moved);
                EXPECT_EQ(cpu.reg(Gpr::Rdi), to + moved);
                EXPECT_EQ(cpu.reg(Gpr::Rcx), 0U);
            }
        }
    }
}

TEST_F(StringTest, AliasedPagesOverlapByPhysicalAddress) {
    long_mode(0);
    map(0, k_frame | 3);
    map(1, k_frame | 3);
    fill(k_frame, 16);
    set(k_test_linear, k_test_linear + 0x1001, 8); // the same page, one byte further
    ASSERT_EQ(run({0xF3, 0xA4}), Step::Next);
    for (size_t i = 0; i < 9; ++i) EXPECT_EQ(memory.get<uint8_t>(k_frame + i), 1);
}

TEST_F(StringTest, FaultInTheMiddleLeavesExactRegisters) {
    long_mode(0);
    map(0, k_frame | 3);
    set(0x40000, k_test_linear + 0xFF0, 100);
    fill(0x40000, 100);
    expect_fault(run({0xF3, 0xA4}), Vector::PF, 2);
    EXPECT_EQ(cpu.fault.cr2, k_test_linear + 0x1000);
    EXPECT_EQ(cpu.rip, 0x5000U);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 84U);
    EXPECT_EQ(cpu.reg(Gpr::Rsi), 0x40010U);
    EXPECT_EQ(cpu.reg(Gpr::Rdi), k_test_linear + 0x1000);
    EXPECT_EQ(memory.get<uint8_t>(k_frame + 0xFFF), 16);
    // Mapped now, it goes on where it stopped.
    map(1, (k_frame + 0x5000) | 3);
    ASSERT_EQ(run({0xF3, 0xA4}), Step::Next);
    EXPECT_EQ(memory.get<uint8_t>(k_frame + 0x5000 + 83), 100);
    EXPECT_EQ(cpu.rip, 0x5002U);
}

TEST_F(StringTest, SplitElementFaultsBeforeWriting) {
    long_mode(0);
    map(0, k_frame | 3);
    memory.put<uint64_t>(0x40000, ~uint64_t{0});
    set(0x40000, k_test_linear + 0xFFC, 1);
    expect_fault(run({0xF3, 0x48, 0xA5}), Vector::PF, 2);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 1U);
    EXPECT_EQ(memory.get<uint32_t>(k_frame + 0xFFC), 0U);
}

TEST_F(StringTest, DownwardsAcrossPages) {
    long_mode(0);
    map(0, k_frame | 3);
    map(1, (k_frame + 0x3000) | 3);
    cpu.reg(Gpr::Rax) = 0x1122'3344'5566'7788;
    cpu.rflags |= k_df;
    set(0, k_test_linear + 0x1008, 4);
    ASSERT_EQ(run({0xF3, 0x48, 0xAB}), Step::Next); // rep stosq
    EXPECT_EQ(memory.get(k_frame + 0x3008), 0x1122'3344'5566'7788U);
    EXPECT_EQ(memory.get(k_frame + 0x3000), 0x1122'3344'5566'7788U);
    EXPECT_EQ(memory.get(k_frame + 0xFF0), 0x1122'3344'5566'7788U);
    EXPECT_EQ(memory.get(k_frame + 0xFE8), 0U);
    EXPECT_EQ(cpu.reg(Gpr::Rdi), k_test_linear + 0x1008 - 32);
}

TEST_F(StringTest, StoresOfEverySize) {
    long_mode(0);
    cpu.reg(Gpr::Rax) = 0x1122'3344'5566'7788;
    set(0, 0x40001, 5000);
    ASSERT_EQ(run({0xF3, 0xAB}), Step::Next); // rep stosd over several pages, unaligned
    for (uint64_t i = 0; i < 5000; ++i) ASSERT_EQ(memory.get<uint32_t>(0x40001 + i * 4), 0x5566'7788U);
    EXPECT_EQ(memory.get<uint8_t>(0x40000), 0);
    EXPECT_EQ(memory.get<uint8_t>(0x40001 + 20000), 0);
    cpu.reg(Gpr::Rax) = 0;
    set(0, 0x40001, 20000);
    ASSERT_EQ(run({0xF3, 0xAA}), Step::Next);
    EXPECT_EQ(memory.get(0x42000), 0U);
}

TEST_F(StringTest, ZeroCountDoesNothing) {
    long_mode(0);
    set(0xFFFF'0000, 0xFFFF'0000, 0); // unmapped
    EXPECT_EQ(run({0xF3, 0xA4}), Step::Next);
    EXPECT_EQ(cpu.rip, 0x5002U);
    uint64_t const flags = cpu.rflags;
    cpu.rip = 0x5000;
    EXPECT_EQ(run({0xF3, 0xA6}), Step::Next); // repe cmpsb leaves the flags alone
    EXPECT_EQ(cpu.rflags, flags);
}

TEST_F(StringTest, AddressSizeWraps) {
    protected32();
    fill(0xFFFE, 2);
    memory.put<uint8_t>(0, 0x77);
    set(0x1234'FFFE, 0xABCD'4000, 0x5555'0003);
    ASSERT_EQ(run({0xF3, 0x67, 0xA4}), Step::Next); // 16-bit SI, DI, CX
    EXPECT_EQ(memory.get<uint8_t>(0x4000), 1);
    EXPECT_EQ(memory.get<uint8_t>(0x4001), 2);
    EXPECT_EQ(memory.get<uint8_t>(0x4002), 0x77);
    EXPECT_EQ(cpu.reg(Gpr::Rsi), 0x1234'0001U);
    EXPECT_EQ(cpu.reg(Gpr::Rdi), 0xABCD'4003U);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 0x5555'0000U);
}

TEST_F(StringTest, SegmentLimitStopsAtTheElement) {
    protected32();
    cpu.segment(SegmentName::Es) = from_gdt(k_small_data);
    update_mode(cpu);
    fill(0x40000, 32);
    set(0x40000, 0xFF8, 16);
    expect_fault(run({0xF3, 0xA4}), Vector::GP, 0);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 8U);
    EXPECT_EQ(cpu.reg(Gpr::Rdi), 0x1000U);
    EXPECT_EQ(memory.get<uint8_t>(0x8FFF), 8);
}

TEST_F(StringTest, SegmentOverrideAppliesToTheSource) {
    long_mode(0);
    cpu.segment(SegmentName::Fs).base = cpu.thread_bases[0] = 0x40000;
    fill(0x40010, 4, 0x51);
    set(0x10, 0x30000, 4);
    ASSERT_EQ(run({0xF3, 0x64, 0xA4}), Step::Next);
    EXPECT_EQ(memory.get<uint32_t>(0x30000), 0x54535251U);
}

TEST_F(StringTest, ComparesAndScans) {
    long_mode(0);
    fill(0x40000, 5000);
    fill(0x50000, 5000);
    memory.put<uint8_t>(0x50000 + 4321, 0xFF);
    set(0x40000, 0x50000, 5000);
    ASSERT_EQ(run({0xF3, 0xA6}), Step::Next); // repe cmpsb
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 5000U - 4322);
    EXPECT_EQ(cpu.reg(Gpr::Rsi), 0x40000U + 4322);
    EXPECT_FALSE(cpu.rflags & k_zf);
    EXPECT_TRUE(cpu.rflags & k_cf); // smaller than 0xFF
    cpu.reg(Gpr::Rax) = 0xFF;
    set(0, 0x50000, 5000);
    ASSERT_EQ(run({0xF2, 0xAE}), Step::Next); // repne scasb
    EXPECT_EQ(cpu.reg(Gpr::Rdi), 0x50000U + 255);
    EXPECT_TRUE(cpu.rflags & k_zf);
    set(0, 0x50000, 10);
    ASSERT_EQ(run({0xF2, 0xAE}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 0U);
    EXPECT_FALSE(cpu.rflags & k_zf);
}

TEST_F(StringTest, ComparisonFlags) {
    long_mode(0);
    struct Case {
        uint32_t left, right;
        uint64_t flags;
    };
    for (Case const& c : {Case{5, 5, k_zf | k_pf}, Case{0x80000000, 1, k_of | k_af | k_pf},
                          Case{0, 1, k_cf | k_sf | k_af | k_pf}, Case{0x10, 0x0F, k_af}, Case{0x103, 0x100, k_pf}}) {
        memory.put<uint32_t>(0x40000, c.right);
        cpu.reg(Gpr::Rax) = c.left;
        set(0, 0x40000, 1);
        ASSERT_EQ(run({0xAF}), Step::Next); // scasd
        EXPECT_EQ(cpu.rflags & k_arithmetic_flags, c.flags) << c.left << " - " << c.right;
    }
}

TEST_F(StringTest, LoadsMergeBySize) {
    long_mode(0);
    memory.put<uint64_t>(0x40000, 0x8877665544332211);
    cpu.reg(Gpr::Rax) = ~uint64_t{0};
    set(0x40000, 0, 1);
    ASSERT_EQ(run({0x66, 0xAD}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0xFFFF'FFFF'FFFF'2211U);
    ASSERT_EQ(run({0xAD}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0x6655'4433U);
    EXPECT_EQ(cpu.reg(Gpr::Rsi), 0x40006U);
}

TEST_F(StringTest, AttentionInterruptsBetweenChunks) {
    long_mode(0);
    set(0x40000, 0x80000, 0x3000);
    cpu.attention = k_attention_kick;
    ASSERT_EQ(run({0xF3, 0xA4}), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x5000U);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 0x2000U);
    cpu.attention = 0;
    ASSERT_EQ(run({0xF3, 0xA4}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 0U);
}

TEST_F(StringTest, SingleStepGoesByElement) {
    long_mode(0);
    cpu.rflags |= k_tf;
    set(0x40000, 0x80000, 3);
    EXPECT_EQ(run({0xF3, 0xA4}), Step::Leave);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 2U);
    EXPECT_EQ(cpu.rip, 0x5000U);
}

TEST_F(StringTest, CodeAndMmioTargets) {
    long_mode(0);
    map(0, k_frame | 3);
    memory.code.insert(k_frame);
    fill(0x40000, 64);
    set(0x40000, k_test_linear + 16, 64);
    ASSERT_EQ(run({0xF3, 0xA4}), Step::Next);
    ASSERT_EQ(memory.code_writes.size(), 1U);
    EXPECT_EQ(memory.code_writes[0], (std::pair<uint64_t, size_t>(k_frame + 16, 64)));
    map(1, 0xFE00'0000 | 3);
    cpu.reg(Gpr::Rax) = 0xAB;
    set(0, k_test_linear + 0x1000, 3);
    ASSERT_EQ(run({0xF3, 0x66, 0xAB}), Step::Next); // rep stosw
    ASSERT_EQ(io.log.size(), 3U);
    EXPECT_EQ(io.log[2], (RecordingIo::Access{true, false, 0xFE000004, 2, 0xAB}));
}

TEST_F(StringTest, PortPermission) {
    protected32(3);
    cpu.tr.limit = 0x68 + 0x20;                          // ports 0-0xFF
    memory.put<uint8_t>(k_task + 0x68 + 0x70 / 8, 0x02); // 0x71 denied
    cpu.reg(Gpr::Rax) = 0x42;
    EXPECT_EQ(run({0xE6, 0x70}), Step::Leave); // out 0x70, al
    expect_fault(run({0xE6, 0x71}), Vector::GP, 0);
    expect_fault(run({0xE7, 0x70}), Vector::GP, 0); // out 0x70, eax touches 0x71
    cpu.reg(Gpr::Rdx) = 0x3F8;
    expect_fault(run({0xEE}), Vector::GP, 0); // beyond the bitmap
    cpu.rflags |= k_iopl;
    EXPECT_EQ(run({0xEE}), Step::Leave);
    EXPECT_EQ(io.log.size(), 2U);
    EXPECT_EQ(io.log[1], (RecordingIo::Access{true, true, 0x3F8, 1, 0x42}));
}

TEST_F(StringTest, PortReadsMergeBySize) {
    protected32();
    cpu.reg(Gpr::Rax) = 0xFFFF'FFFF'FFFF'FFFF;
    cpu.reg(Gpr::Rdx) = 0x510;
    EXPECT_EQ(run({0xEC}), Step::Leave);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0xFFFF'FFFF'FFFF'FF88U);
    EXPECT_EQ(run({0x66, 0xED}), Step::Leave);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0xFFFF'FFFF'FFFF'7788U);
    EXPECT_EQ(run({0xED}), Step::Leave);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0x5566'7788U);
}

TEST_F(StringTest, StringInputReadsNoPortWithoutAPlace) {
    long_mode(0);
    map(0, k_frame | 3);
    set(0, k_test_linear + 0xFFE, 4);
    cpu.reg(Gpr::Rdx) = 0x511;
    expect_fault(run({0xF3, 0x6C}), Vector::PF, 2);
    EXPECT_EQ(io.log.size(), 2U);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 2U);
    EXPECT_EQ(memory.get<uint16_t>(k_frame + 0xFFE), 0x8888);
    memory.put<uint32_t>(0x40000, 0xDDCCBBAA);
    set(0x40000, 0, 2);
    ASSERT_EQ(run({0xF3, 0x66, 0x6F}), Step::Leave); // rep outsw
    EXPECT_EQ(io.log[3], (RecordingIo::Access{true, true, 0x511, 2, 0xDDCC}));
}

} // namespace
} // namespace coffer::tests
