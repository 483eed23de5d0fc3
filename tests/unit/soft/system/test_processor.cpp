// Control and debug registers, MSRs, CPUID, stack and decimal instructions, FXSAVE, saved state.
#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {
namespace {

class ProcessorTest : public SoftCpuTest {
protected:
    Step read_msr(uint32_t index) {
        cpu.reg(Gpr::Rcx) = index;
        return run({0x0F, 0x32});
    }
    Step write_msr(uint32_t index, uint64_t value) {
        cpu.reg(Gpr::Rcx) = index;
        cpu.reg(Gpr::Rax) = value & 0xFFFFFFFF;
        cpu.reg(Gpr::Rdx) = value >> 32;
        return run({0x0F, 0x30});
    }
    uint64_t pair() { return (cpu.reg(Gpr::Rax) & 0xFFFFFFFF) | cpu.reg(Gpr::Rdx) << 32; }
    uint64_t msr(uint32_t index) {
        EXPECT_EQ(read_msr(index), Step::Next) << std::hex << index;
        return pair();
    }
};

TEST_F(ProcessorTest, ResetState) {
    EXPECT_EQ(cpu.rip, 0xFFF0U);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).base, 0xFFFF0000U);
    EXPECT_EQ(cpu.mode, (Mode{.code_bits = 16, .stack_bits = 16}));
    EXPECT_EQ(cpu.reg(Gpr::Rdx), cpuid(cpu, 1, 0).eax);
    EXPECT_LT(guest_tsc(cpu), cpu.tsc_hz);
    cpu.cr0 = 0x60000011 & ~k_cr0_nw;
    cpu.pat = 0x0606060606060606;
    cpu.fxsave[32] = 0x55;
    cpu.efer = k_efer_nxe;
    init_cpu(cpu);
    EXPECT_EQ(cpu.cr0, k_cr0_cd | k_cr0_et); // CD and NW stay
    EXPECT_EQ(cpu.efer, 0U);
    EXPECT_EQ(cpu.pat, 0x0606060606060606U);
    EXPECT_EQ(cpu.fxsave[32], 0x55);
    EXPECT_EQ(cpu.rip, 0xFFF0U);
}

TEST_F(ProcessorTest, ControlRegisterChecks) {
    protected32();
    auto cr0 = [&](uint64_t value) { return cpu.reg(Gpr::Rax) = value, run({0x0F, 0x22, 0xC0}); };
    auto cr4 = [&](uint64_t value) { return cpu.reg(Gpr::Rax) = value, run({0x0F, 0x22, 0xE0}); };
    expect_fault(cr0(k_cr0_pg), Vector::GP, 0);            // PG without PE
    expect_fault(cr0(k_cr0_pe | k_cr0_nw), Vector::GP, 0); // NW without CD
    expect_fault(cr4(k_cr4_la57), Vector::GP, 0);
    expect_fault(cr4(k_cr4_osxsave), Vector::GP, 0);
    expect_fault(cr4(k_cr4_pcide), Vector::GP, 0);
    EXPECT_EQ(cr4(k_cr4_mce | k_cr4_osfxsr | k_cr4_osxmmexcpt), Step::Leave); // OVMF's first value
    EXPECT_EQ(run({0x0F, 0x20, 0xE3}), Step::Next);                           // mov ebx, cr4
    EXPECT_EQ(cpu.reg(Gpr::Rbx), 0x640U);
    EXPECT_EQ(cr0(k_cr0_pe | k_cr0_ts), Step::Leave);
    EXPECT_TRUE(cpu.cr0 & k_cr0_et);           // hard-wired
    EXPECT_EQ(run({0x0F, 0x06}), Step::Leave); // clts
    EXPECT_FALSE(cpu.cr0 & k_cr0_ts);
    // LMSW sets PE, and never clears it.
    cpu.reg(Gpr::Rax) = 0x8;
    EXPECT_EQ(run({0x0F, 0x01, 0xF0}), Step::Leave);
    EXPECT_TRUE(cpu.cr0 & k_cr0_pe);
    EXPECT_TRUE(cpu.cr0 & k_cr0_ts);
    // EFER.LME with paging on cannot change.
    long_mode(0);
    expect_fault(write_msr(0xC0000080, k_efer_sce), Vector::GP, 0);
    expect_fault(cr4(k_cr4_pge), Vector::GP, 0); // PAE cannot go in long mode
    // CR8 is the local APIC's.
    cpu.reg(Gpr::Rax) = 9;
    EXPECT_EQ(run({0x44, 0x0F, 0x22, 0xC0}), Step::Leave); // mov cr8, rax
    EXPECT_EQ(interrupts.cr8, 9);
    cpu.reg(Gpr::Rax) = 16;
    expect_fault(run({0x44, 0x0F, 0x22, 0xC0}), Vector::GP, 0);
}

TEST_F(ProcessorTest, PrivilegedInstructionsNeedLevelZero) {
    long_mode(3);
    expect_fault(run({0xF4}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x20, 0xC0}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x22, 0xC0}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x21, 0xC0}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x06}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x01, 0x10}), Vector::GP, 0); // lgdt
    expect_fault(run({0x0F, 0x01, 0x18}), Vector::GP, 0); // lidt
    expect_fault(run({0x0F, 0x01, 0x38}), Vector::GP, 0); // invlpg
    expect_fault(run({0x0F, 0x32}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x30}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x09}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x01, 0xF8}), Vector::GP, 0); // swapgs
    expect_fault(run({0xFA}), Vector::GP, 0);
    expect_fault(run({0xFB}), Vector::GP, 0);
    cpu.cr4 |= k_cr4_umip;
    expect_fault(run({0x0F, 0x01, 0x00}), Vector::GP, 0); // sgdt
    expect_fault(run({0x0F, 0x01, 0xE0}), Vector::GP, 0); // smsw eax
    expect_fault(run({0x0F, 0x00, 0xC8}), Vector::GP, 0); // str eax
    cpu.cr4 |= k_cr4_tsd;
    expect_fault(run({0x0F, 0x31}), Vector::GP, 0);
    expect_fault(run({0x0F, 0x33}), Vector::GP, 0);    // rdpmc
    expect_fault(run({0x0F, 0x01, 0xCB}), Vector::UD); // stac
    expect_fault(run({0x0F, 0x01, 0xD0}), Vector::UD); // xgetbv: no XSAVE
    expect_fault(run({0x0F, 0x01, 0xC8}), Vector::UD); // monitor
}

TEST_F(ProcessorTest, DescriptorTableRegisters) {
    long_mode(0);
    memory.put<uint16_t>(0x4000, 0x7F);
    memory.put<uint64_t>(0x4002, 0xFFFF'8880'1234'5678);
    cpu.reg(Gpr::Rax) = 0x4000;
    EXPECT_EQ(run({0x0F, 0x01, 0x10}), Step::Leave);
    EXPECT_EQ(cpu.gdtr.base, 0xFFFF'8880'1234'5678U);
    EXPECT_EQ(cpu.gdtr.limit, 0x7F);
    memory.put<uint64_t>(0x4002, 0x0000'8000'0000'0000);
    expect_fault(run({0x0F, 0x01, 0x18}), Vector::GP, 0);
    cpu.reg(Gpr::Rax) = 0x4100;
    EXPECT_EQ(run({0x0F, 0x01, 0x00}), Step::Next);
    EXPECT_EQ(memory.get(0x4102), 0xFFFF'8880'1234'5678U);
    // A 16-bit operand loads 24 bits of base.
    reset_cpu(cpu);
    memory.put<uint16_t>(0x4000, 0x7F);
    memory.put<uint32_t>(0x4002, 0xFF123456);
    cpu.reg(Gpr::Rbx) = 0x4000;
    EXPECT_EQ(run({0x0F, 0x01, 0x17}), Step::Leave); // lgdt [bx]
    EXPECT_EQ(cpu.gdtr.base, 0x123456U);
    EXPECT_EQ(run({0x66, 0x0F, 0x01, 0x17}), Step::Leave);
    EXPECT_EQ(cpu.gdtr.base, 0xFF123456U);
}

TEST_F(ProcessorTest, MsrPolicy) {
    long_mode(0);
    expect_fault(read_msr(0xDEAD), Vector::GP, 0);
    expect_fault(write_msr(0xDEAD, 0), Vector::GP, 0);
    EXPECT_EQ(msr(0xFE), 0x508U);
    EXPECT_EQ(msr(0x277), 0x0007040600070406U);
    expect_fault(write_msr(0x277, 0x0203), Vector::GP, 0); // reserved memory types
    EXPECT_EQ(write_msr(0x277, 0x0606), Step::Leave);
    EXPECT_EQ(cpu.pat, 0x0606U);
    EXPECT_EQ(write_msr(0x200, 0x8000'0006), Step::Leave);
    EXPECT_EQ(write_msr(0x201, 0xFF'8000'0800), Step::Leave);
    EXPECT_EQ(msr(0x201), 0xFF'8000'0800U);
    expect_fault(write_msr(0x201, bit(40) | 0x800), Vector::GP, 0);
    expect_fault(write_msr(0x200, 0x8000'0002), Vector::GP, 0);
    EXPECT_EQ(write_msr(0x26F, 0x0606060606060606), Step::Leave);
    EXPECT_EQ(cpu.mtrr_fixed[10], 0x0606060606060606U);
    EXPECT_EQ(write_msr(0x2FF, 0xC06), Step::Leave);
    expect_fault(write_msr(0x2FF, 0x1000), Vector::GP, 0);
    expect_fault(write_msr(0xFE, 0), Vector::GP, 0);
    EXPECT_EQ(write_msr(0x8B, 0), Step::Leave);
    EXPECT_EQ(msr(0x8B) >> 32, 1U);
    EXPECT_TRUE(msr(0x10A) & 1); // RDCL_NO
    EXPECT_TRUE(msr(0x1A0) & 1);
    expect_fault(write_msr(0xC0000082, 0x0000'8000'0000'0000), Vector::GP, 0);
    EXPECT_EQ(write_msr(0xC0000100, 0x1234), Step::Leave);
    EXPECT_EQ(cpu.thread_bases[0], 0x1234U);
    EXPECT_EQ(msr(0x1B), 0xFEE00900U);
    expect_fault(write_msr(0x1B, 0xFEE00901), Vector::GP, 0);
    EXPECT_EQ(write_msr(0x6E0, 0x123456789), Step::Leave);
    EXPECT_EQ(interrupts.deadline, 0x123456789U);
    EXPECT_EQ(msr(0x802), 0x802U);
    expect_fault(read_msr(0x803), Vector::GP, 0);
    EXPECT_EQ(write_msr(0x80B, 0), Step::Leave);
    expect_fault(write_msr(0xC0000080, bit(16)), Vector::GP, 0);
}

TEST_F(ProcessorTest, TimeStampCounter) {
    long_mode(0);
    EXPECT_EQ(write_msr(0x10, 1'000'000'000'000), Step::Leave);
    EXPECT_EQ(run({0x0F, 0x31}), Step::Next);
    uint64_t const first = pair();
    EXPECT_GE(first, 1'000'000'000'000U);
    EXPECT_LT(first, 1'000'000'000'000U + 10 * cpu.tsc_hz);
    // A write to the counter moves the adjustment by as much, and the reverse.
    uint64_t const adjust = msr(0x3B);
    EXPECT_NE(adjust, 0U);
    EXPECT_EQ(write_msr(0x3B, adjust + 5'000'000'000'000), Step::Leave);
    cpu.tsc_aux = 7;
    EXPECT_EQ(run({0x0F, 0x01, 0xF9}), Step::Next); // rdtscp
    EXPECT_GE(pair(), first + 5'000'000'000'000);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 7U);
}

TEST_F(ProcessorTest, CpuidPolicy) {
    auto leaf = [&](uint32_t number, uint32_t sub = 0) { return cpuid(cpu, number, sub); };
    EXPECT_EQ(leaf(0).ebx, 0x756E6547U); // "Genu"
    EXPECT_EQ(leaf(0).edx, 0x49656E69U);
    EXPECT_EQ(leaf(0).ecx, 0x6C65746EU);
    EXPECT_EQ(leaf(0x80000008).eax & 0xFF, k_physical_address_bits);
    EXPECT_TRUE(leaf(1).ecx & bit(31));
    // "KVMKVMKVM", and none of its features.
    EXPECT_EQ(leaf(0x40000000).ebx, 0x4B4D564BU);
    EXPECT_EQ(leaf(0x40000000).ecx, 0x564B4D56U);
    EXPECT_EQ(leaf(0x40000000).edx, 0x0000004DU);
    EXPECT_EQ(leaf(0x40000001).eax, 0U);
    // Nothing of XSAVE, AVX, FMA, F16C, MONITOR, VMX, PCID; nor of AVX2, BMI, AVX-512, RTM, MPX, PKU, LA57.
    EXPECT_EQ(leaf(1).ecx & (bit(3) | bit(5) | bit(12) | bit(17) | bit(26) | bit(27) | bit(28) | bit(29)), 0U);
    EXPECT_EQ(leaf(7).ebx & (bit(3) | bit(4) | bit(5) | bit(8) | bit(11) | bit(14) | bit(16)), 0U);
    EXPECT_EQ(leaf(7).ecx & (bit(3) | bit(16)), 0U);
    EXPECT_EQ(leaf(7, 1).eax, 0U);
    // The set of an x86-64 baseline that Linux refuses to start without.
    constexpr uint64_t required =
        bit(0) | bit(3) | bit(5) | bit(6) | bit(8) | bit(13) | bit(15) | bit(24) | bit(25) | bit(26);
    EXPECT_EQ(leaf(1).edx & required, required);
    EXPECT_TRUE(leaf(0x80000001).edx & bit(29));
    // TSC frequency: crystal times ratio.
    auto const tsc = leaf(0x15);
    EXPECT_EQ(uint64_t{tsc.ecx} * tsc.ebx / tsc.eax, cpu.tsc_hz);
    EXPECT_EQ(leaf(0x40000010).eax, cpu.tsc_hz / 1000);
    EXPECT_EQ(leaf(0x12345).eax, leaf(0x16).eax); // above the highest: the highest basic leaf
    cpu.reg(Gpr::Rax) = 0xFFFF'FFFF'0000'0000;
    cpu.reg(Gpr::Rcx) = ~uint64_t{0};
    EXPECT_EQ(run({0x0F, 0xA2}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0x16U);
    EXPECT_EQ(cpu.reg(Gpr::Rbx), 0x756E6547U);
}

TEST_F(ProcessorTest, PushAndPopForms) {
    long_mode(0);
    EXPECT_EQ(run({0x6A, 0xFE}), Step::Next); // push -2
    EXPECT_EQ(memory.get(0x7FF8), ~uint64_t{1});
    EXPECT_EQ(run({0x66, 0x6A, 0x05}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x7FF6U);
    EXPECT_EQ(run({0x66, 0x59}), Step::Next); // pop cx
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 5U);
    EXPECT_EQ(run({0x54}), Step::Next); // push rsp: the value before
    EXPECT_EQ(memory.get(0x7FF0), 0x7FF8U);
    EXPECT_EQ(run({0x8F, 0x44, 0x24, 0x20}), Step::Next); // pop [rsp+0x20]: RSP behind the pop
    EXPECT_EQ(memory.get(0x7FF8 + 0x20), 0x7FF8U);
    EXPECT_EQ(run({0x5C}), Step::Next); // pop rsp
    EXPECT_EQ(cpu.reg(Gpr::Rsp), ~uint64_t{1});
    cpu.reg(Gpr::Rsp) = 0x8000;
    cpu.reg(Gpr::Rax) = k_test_linear; // unmapped
    memory.put<uint64_t>(0x8000, 1);
    expect_fault(run({0x8F, 0x00}), Vector::PF, 2);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
}

TEST_F(ProcessorTest, PushAllAndEnter) {
    protected32();
    for (size_t i = 0; i < 8; ++i) cpu.gpr[i] = 0x100 + i;
    cpu.reg(Gpr::Rsp) = 0x8000;
    EXPECT_EQ(run({0x60}), Step::Next);
    EXPECT_EQ(memory.get<uint32_t>(0x8000 - 20), 0x8000U);
    auto const before = cpu.gpr;
    for (size_t i = 0; i < 8; ++i) {
        if (i != 4) cpu.gpr[i] = 0;
    }
    EXPECT_EQ(run({0x61}), Step::Next);
    for (size_t i = 0; i < 8; ++i) {
        if (i != 4) {
            EXPECT_EQ(cpu.gpr[i], before[i]);
        }
    }
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);

    cpu.reg(Gpr::Rbp) = 0x7800;
    memory.put<uint32_t>(0x77FC, 0xAAAA);
    EXPECT_EQ(run({0xC8, 0x10, 0x00, 0x02}), Step::Next); // enter 16, 2
    EXPECT_EQ(memory.get<uint32_t>(0x7FFC), 0x7800U);
    EXPECT_EQ(memory.get<uint32_t>(0x7FF8), 0xAAAAU);
    EXPECT_EQ(memory.get<uint32_t>(0x7FF4), 0x7FFCU);
    EXPECT_EQ(cpu.reg(Gpr::Rbp), 0x7FFCU);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x7FF4U - 0x10);
    EXPECT_EQ(run({0xC9}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rbp), 0x7800U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
}

TEST_F(ProcessorTest, FlagsByLevel) {
    long_mode(3);
    memory.put<uint64_t>(0x8000, k_iopl | k_if | k_cf | k_ac);
    EXPECT_EQ(run({0x9D}), Step::Leave); // popfq at level 3: IF and IOPL stay
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_cf | k_ac);
    long_mode(0);
    cpu.rflags = k_fixed_flag;
    EXPECT_EQ(run({0x9D}), Step::Leave);
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_iopl | k_if | k_cf | k_ac);
    cpu.rflags |= k_rf;
    EXPECT_EQ(run({0x9C}), Step::Next);
    EXPECT_EQ(memory.get(0x8000), k_fixed_flag | k_iopl | k_if | k_cf | k_ac);
}

TEST_F(ProcessorTest, NearControlFlow) {
    reset_cpu(cpu);
    cpu.segment(SegmentName::Cs) = {.selector = 0, .attributes = 0x9B, .limit = 0xFFFF, .base = 0};
    cpu.rip = 0xFFF0;
    EXPECT_EQ(run({0xEB, 0x20}), Step::Leave); // IP wraps at 64 KiB
    EXPECT_EQ(cpu.rip, 0x12U);
    cpu.reg(Gpr::Rsp) = 0x100;
    EXPECT_EQ(run({0xE8, 0x00, 0x10}), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x1015U);
    EXPECT_EQ(memory.get<uint16_t>(0xFE), 0x15);
    EXPECT_EQ(run({0xC2, 0x04, 0x00}), Step::Leave); // ret 4
    EXPECT_EQ(cpu.rip, 0x15U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x104U);
    expect_fault(run({0x66, 0xE9, 0, 0, 1, 0}), Vector::GP, 0); // beyond the limit
    cpu.reg(Gpr::Rcx) = 0x1'0001;
    EXPECT_EQ(run({0xE2, 0x10}), Step::Leave); // loop on CX: 1 to 0, not taken
    EXPECT_EQ(cpu.rip, 0x17U);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 0x1'0000U);
    EXPECT_EQ(run({0xE3, 0x10}), Step::Leave); // jcxz taken
    EXPECT_EQ(cpu.rip, 0x29U);
    cpu.rflags = k_fixed_flag | k_sf;
    EXPECT_EQ(run({0x7C, 0x07}), Step::Leave); // jl: SF != OF
    EXPECT_EQ(cpu.rip, 0x32U);
    EXPECT_EQ(run({0x7F, 0x07}), Step::Leave); // jg not taken
    EXPECT_EQ(cpu.rip, 0x34U);
    long_mode(0);
    cpu.reg(Gpr::Rax) = 0x0000'8000'0000'0000;
    expect_fault(run({0xFF, 0xE0}), Vector::GP, 0);
    EXPECT_EQ(cpu.rip, 0x5000U);
}

TEST_F(ProcessorTest, DecimalAdjustments) {
    protected32();
    auto adjust = [&](uint64_t ax, uint64_t flags, std::initializer_list<uint8_t> bytes) {
        cpu.reg(Gpr::Rax) = ax;
        cpu.rflags = k_fixed_flag | flags;
        EXPECT_EQ(run(bytes), Step::Next);
        return cpu.reg(Gpr::Rax);
    };
    // The examples of the SDM's pages: 79h + 35h = AEh.
    EXPECT_EQ(adjust(0xAE, k_of | k_sf | k_pf, {0x27}), 0x14U);
    EXPECT_EQ(cpu.rflags & (k_cf | k_af | k_pf), k_cf | k_af | k_pf);
    // 35h - 47h = EEh with borrows.
    EXPECT_EQ(adjust(0xEE, k_cf | k_af | k_sf, {0x2F}), 0x88U);
    EXPECT_TRUE(cpu.rflags & k_cf);
    EXPECT_EQ(adjust(0x000F, 0, {0x37}), 0x0105U);
    EXPECT_TRUE(cpu.rflags & k_cf);
    EXPECT_EQ(adjust(0x0105, 0, {0x37}), 0x0105U);
    EXPECT_EQ(adjust(0x02FF, k_af, {0x3F}), 0x0109U);
    EXPECT_EQ(adjust(0x0043, 0, {0xD4, 0x0A}), 0x0607U);
    EXPECT_EQ(adjust(0x0607, 0, {0xD5, 0x0A}), 0x0043U);
    cpu.reg(Gpr::Rax) = 1;
    expect_fault(run({0xD4, 0x00}), Vector::DE);
    EXPECT_EQ(adjust(0x1200, k_cf, {0xD6}), 0x12FFU); // salc
    memory.put<int32_t>(0x4000, -5);
    memory.put<int32_t>(0x4004, 5);
    cpu.reg(Gpr::Rbx) = 0x4000;
    cpu.reg(Gpr::Rax) = 0xFFFFFFFB;
    EXPECT_EQ(run({0x62, 0x03}), Step::Next); // bound eax, [ebx]
    cpu.reg(Gpr::Rax) = 6;
    expect_fault(run({0x62, 0x03}), Vector::BR);
    memory.put<uint8_t>(0x4020, 0x99);
    cpu.reg(Gpr::Rax) = 0x20;
    EXPECT_EQ(run({0xD7}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0x99U);
}

TEST_F(ProcessorTest, FxsaveHidesHostPointers) {
    long_mode(0);
    for (size_t i = 0; i < 512; ++i) cpu.fxsave[i] = static_cast<uint8_t>(i | 1);
    std::array<uint8_t, 4> const mxcsr{0x80, 0x1F, 0, 0};
    std::copy(mxcsr.begin(), mxcsr.end(), cpu.fxsave.begin() + 24);
    auto const before = cpu.fxsave;
    cpu.reg(Gpr::Rax) = 0x4000;
    EXPECT_EQ(run({0x48, 0x0F, 0xAE, 0x00}), Step::Next); // fxsave64 [rax]
    EXPECT_EQ(memory.get(0x4008), 0U);
    EXPECT_EQ(memory.get(0x4010), 0U);
    EXPECT_EQ(memory.get<uint32_t>(0x401C), 0xFFFFU);
    EXPECT_EQ(memory.get<uint8_t>(0x4000 + 415), before[415]);
    EXPECT_EQ(memory.get<uint8_t>(0x4000 + 416), 0);
    cpu.fxsave.fill(0);
    EXPECT_EQ(run({0x48, 0x0F, 0xAE, 0x08}), Step::Next); // fxrstor64
    EXPECT_TRUE(std::equal(before.begin() + 32, before.begin() + 416, cpu.fxsave.begin() + 32));
    memory.put<uint32_t>(0x4018, 0x10000);
    expect_fault(run({0x48, 0x0F, 0xAE, 0x08}), Vector::GP, 0);
    cpu.reg(Gpr::Rax) = 0x4008;
    expect_fault(run({0x48, 0x0F, 0xAE, 0x00}), Vector::GP, 0);
    cpu.cr0 |= k_cr0_ts;
    expect_fault(run({0x48, 0x0F, 0xAE, 0x00}), Vector::NM);
}

TEST_F(ProcessorTest, UnknownInstructionsAreUndefined) {
    long_mode(0);
    expect_fault(run({0x0F, 0x0B}), Vector::UD);
    expect_fault(run({0x0F, 0x01, 0xC1}), Vector::UD); // vmcall
    expect_fault(run({0x0F, 0xAA}), Vector::UD);       // rsm
}

TEST_F(ProcessorTest, InvpcidFlushes) {
    long_mode(0);
    memory.put<uint64_t>(0x4000, 0);
    memory.put<uint64_t>(0x4008, k_test_linear);
    map(0, 0x20000 | 3 | 0x100);
    uint64_t value = 0;
    ASSERT_TRUE(memory_read(cpu, k_test_linear, &value, 8));
    cpu.reg(Gpr::Rbx) = 0x4000;
    auto invpcid = [&](uint64_t type) { return cpu.reg(Gpr::Rax) = type, run({0x66, 0x0F, 0x38, 0x82, 0x03}); };
    auto cached = [&] { return cpu.tlb[0].entries[tlb_index(k_test_linear)].read_tag == k_test_linear; };
    EXPECT_EQ(invpcid(3), Step::Leave); // all but globals
    EXPECT_TRUE(cached());
    EXPECT_EQ(invpcid(2), Step::Leave);
    EXPECT_FALSE(cached());
    expect_fault(invpcid(4), Vector::GP, 0);
    memory.put<uint64_t>(0x4000, 1);
    expect_fault(invpcid(0), Vector::GP, 0); // PCID 1 without CR4.PCIDE
}

TEST_F(ProcessorTest, SavedStateReturns) {
    long_mode(3);
    for (size_t i = 0; i < 16; ++i) cpu.gpr[i] = 0x1111 * (i + 1);
    cpu.rflags |= k_if | k_cf;
    cpu.lstar = 0xFFFF'8000'0000'1000;
    cpu.mtrr_fixed[3] = 0x0606060606060606;
    cpu.tsc_aux = 3;
    cpu.fxsave[40] = 0x42;
    cpu.debug.address[2] = 0x1234;
    cpu.interrupt_shadow = true;
    interrupts.cr8 = 5;
    cpu.tsc_offset += 1'000'000'000'000;
    CpuState const saved = save_cpu(cpu);
    reset_cpu(cpu);
    interrupts.cr8 = 0;
    ASSERT_TRUE(load_cpu(cpu, saved));
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.mode.code_bits, 64);
    EXPECT_EQ(interrupts.cr8, 5);
    EXPECT_GE(guest_tsc(cpu), 1'000'000'000'000U);
    CpuState const again = save_cpu(cpu);
    EXPECT_EQ(again.gpr, saved.gpr);
    EXPECT_EQ(again.rip, saved.rip);
    EXPECT_EQ(again.rflags, saved.rflags);
    EXPECT_EQ(again.cr3, saved.cr3);
    EXPECT_EQ(again.efer, saved.efer);
    EXPECT_EQ(again.dr, saved.dr);
    EXPECT_EQ(again.fxsave, saved.fxsave);
    EXPECT_EQ(again.interrupt_shadow, saved.interrupt_shadow);
    ASSERT_EQ(again.msrs.size(), saved.msrs.size());
    for (size_t i = 0; i + 1 < saved.msrs.size(); ++i) { // the last is the running counter
        EXPECT_EQ(again.msrs[i].index, saved.msrs[i].index);
        EXPECT_EQ(again.msrs[i].value, saved.msrs[i].value);
    }
}

TEST_F(ProcessorTest, StateThatIsNotOfferedIsRefused) {
    long_mode(0);
    CpuState const good = save_cpu(cpu);
    auto refused = [&](auto change) {
        CpuState state = good;
        change(state);
        return !load_cpu(cpu, state).has_value();
    };
    EXPECT_TRUE(refused([](CpuState& s) { s.cr4 |= k_cr4_la57; }));
    EXPECT_TRUE(refused([](CpuState& s) { s.efer |= bit(12); }));
    EXPECT_TRUE(refused([](CpuState& s) { s.efer &= ~k_efer_lma; }));
    EXPECT_TRUE(refused([](CpuState& s) { s.cr0 &= ~k_cr0_pe; }));
    EXPECT_TRUE(refused([](CpuState& s) { s.rflags |= k_vm; }));
    EXPECT_TRUE(refused([](CpuState& s) { s.xcr0 = 7; }));
    EXPECT_TRUE(refused([](CpuState& s) { s.msrs.push_back({.index = 0xDEAD, .value = 0}); }));
    EXPECT_TRUE(refused([](CpuState& s) { s.msrs.push_back({.index = 0x277, .value = 2}); }));
    EXPECT_FALSE(refused([](CpuState& s) { s.msrs.push_back({.index = 0x8B, .value = uint64_t{1} << 32}); }));
    EXPECT_FALSE(refused([](CpuState&) {}));
}

} // namespace
} // namespace coffer::tests
