// Segment loads, limits, far branches, call gates, SYSCALL and SYSENTER.
#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {
namespace {

class TransferTest : public SoftCpuTest {
protected:
    Step load_ds(uint16_t selector) {
        cpu.reg(Gpr::Rax) = selector;
        return run({0x8E, 0xD8});
    }
    Step load_ss(uint16_t selector) {
        cpu.reg(Gpr::Rax) = selector;
        return run({0x8E, 0xD0});
    }
    Step far_jump32(uint16_t selector, uint32_t offset) {
        auto byte = [](uint32_t value, unsigned at) { return static_cast<uint8_t>(value >> (at * 8)); };
        return run({0xEA, byte(offset, 0), byte(offset, 1), byte(offset, 2), byte(offset, 3), byte(selector, 0),
                    byte(selector, 1)});
    }
    void call_gate(uint16_t selector, uint32_t offset, uint16_t type_and_dpl, unsigned parameters) {
        memory.put<uint64_t>(k_gdt + k_gate, (offset & 0xFFFF) | uint64_t{selector} << 16 | uint64_t{parameters} << 32 |
                                                 uint64_t{type_and_dpl} << 40 | uint64_t{offset & 0xFFFF0000} << 32);
        memory.put<uint64_t>(k_gdt + k_gate + 8, 0);
    }
};

TEST_F(TransferTest, RealModeLoadsBaseAlone) {
    cpu.segment(SegmentName::Ds).limit = 0xFFFFFFFF; // "unreal"
    EXPECT_EQ(load_ds(0x1234), Step::Leave);
    EXPECT_EQ(cpu.segment(SegmentName::Ds).base, 0x12340U);
    EXPECT_EQ(cpu.segment(SegmentName::Ds).limit, 0xFFFFFFFFU);
    uint64_t linear = 0;
    EXPECT_TRUE(segment_to_linear(cpu, SegmentName::Ds, 0x100000, 4, Access::Read, linear));
    EXPECT_EQ(linear, 0x112340U);
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Es, 0x10000, 1, Access::Read, linear));
    EXPECT_EQ(cpu.fault.vector, Vector::GP);
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Ss, 0xFFFF, 2, Access::Read, linear));
    EXPECT_EQ(cpu.fault.vector, Vector::SS);
}

TEST_F(TransferTest, DataSegmentChecks) {
    protected32();
    EXPECT_EQ(load_ds(k_small_data), Step::Leave);
    EXPECT_EQ(cpu.segment(SegmentName::Ds).base, 0x8000U);
    EXPECT_FALSE(cpu.mode.flat);
    expect_fault(load_ds(k_absent), Vector::NP, k_absent);
    expect_fault(load_ds(0x1000), Vector::GP, 0x1000);
    expect_fault(load_ds(k_tss), Vector::GP, k_tss);
    EXPECT_EQ(load_ds(k_code32), Step::Leave); // readable code
    EXPECT_EQ(load_ds(0), Step::Leave);
    uint64_t linear = 0;
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Ds, 0, 1, Access::Read, linear));
    EXPECT_EQ(cpu.fault.vector, Vector::GP);
    // Loading marks the descriptor accessed.
    memory.put<uint64_t>(k_gdt + k_data, 0x00CF92000000FFFF);
    EXPECT_EQ(load_ds(k_data), Step::Leave);
    EXPECT_EQ(memory.get(k_gdt + k_data), 0x00CF93000000FFFFU);
    EXPECT_TRUE(cpu.mode.flat);

    protected32(3);
    expect_fault(load_ds(k_data), Vector::GP, k_data);
    expect_fault(load_ds(k_data | 3), Vector::GP, k_data);
    EXPECT_EQ(load_ds(k_user_data), Step::Leave);
    EXPECT_EQ(load_ds(k_conforming | 3), Step::Leave);
}

TEST_F(TransferTest, StackSegmentChecks) {
    protected32();
    expect_fault(load_ss(0), Vector::GP, 0);
    expect_fault(load_ss(k_read_only), Vector::GP, k_read_only);
    expect_fault(load_ss(k_user_data), Vector::GP, k_user_data & ~3U);
    expect_fault(load_ss(k_absent), Vector::SS, k_absent);
    EXPECT_EQ(load_ss(k_data16), Step::Leave);
    EXPECT_EQ(cpu.mode.stack_bits, 16);
    // A 16-bit stack leaves the upper half of ESP alone.
    cpu.reg(Gpr::Rsp) = 0x1234'0000;
    EXPECT_EQ(run({0x50}), Step::Next);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x1234'FFFCU);
    long_mode(0);
    EXPECT_EQ(load_ss(0), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 0);
    long_mode(3);
    expect_fault(load_ss(3), Vector::GP, 0);
}

TEST_F(TransferTest, LimitsAndTypes) {
    protected32();
    ASSERT_EQ(load_ds(k_small_data), Step::Leave);
    uint64_t linear = 0;
    EXPECT_TRUE(segment_to_linear(cpu, SegmentName::Ds, 0xFFC, 4, Access::Read, linear));
    EXPECT_EQ(linear, 0x8FFCU);
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Ds, 0xFFD, 4, Access::Read, linear));
    ASSERT_EQ(load_ds(k_read_only), Step::Leave);
    EXPECT_TRUE(segment_to_linear(cpu, SegmentName::Ds, 0, 4, Access::Read, linear));
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Ds, 0, 4, Access::Write, linear));
    ASSERT_EQ(load_ds(k_expand_down), Step::Leave);
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Ds, 0x3FFF, 4, Access::Read, linear));
    EXPECT_TRUE(segment_to_linear(cpu, SegmentName::Ds, 0x4000, 4, Access::Read, linear));
    EXPECT_FALSE(segment_to_linear(cpu, SegmentName::Cs, 0, 4, Access::Write, linear));
    // 32-bit linear addresses wrap.
    cpu.segment(SegmentName::Es).base = 0xFFFF'F000;
    EXPECT_TRUE(segment_to_linear(cpu, SegmentName::Es, 0x2000, 4, Access::Read, linear));
    EXPECT_EQ(linear, 0x1000U);
}

TEST_F(TransferTest, LocalDescriptorTable) {
    protected32();
    memory.put<uint64_t>(0x6008, 0x00CF93000000FFFF);
    expect_fault(load_ds(0x0C), Vector::GP, 0x0C);
    cpu.reg(Gpr::Rax) = k_ldt;
    EXPECT_EQ(run({0x0F, 0x00, 0xD0}), Step::Leave); // lldt ax
    EXPECT_EQ(cpu.ldtr.base, 0x6000U);
    EXPECT_EQ(load_ds(0x0C), Step::Leave);
    expect_fault(load_ds(0x1C), Vector::GP, 0x1C); // beyond the limit
    cpu.reg(Gpr::Rax) = k_data;
    expect_fault(run({0x0F, 0x00, 0xD0}), Vector::GP, k_data);
}

TEST_F(TransferTest, TaskRegisterBecomesBusyOnce) {
    long_mode(0);
    cpu.reg(Gpr::Rax) = k_tss;
    EXPECT_EQ(run({0x0F, 0x00, 0xD8}), Step::Leave); // ltr ax
    EXPECT_EQ(cpu.tr.base, k_task);
    EXPECT_EQ(cpu.tr.attributes & 0xF, 11);
    EXPECT_EQ((memory.get(k_gdt + k_tss) >> 40) & 0xF, 11U);
    expect_fault(run({0x0F, 0x00, 0xD8}), Vector::GP, k_tss);
    long_mode(3);
    expect_fault(run({0x0F, 0x00, 0xD8}), Vector::GP, 0);
}

TEST_F(TransferTest, FarJumpSwitchesModes) {
    // Real mode to 16-bit protected mode, to 32 bits, to long mode: the way firmware takes.
    use_tables();
    cpu.reg(Gpr::Rax) = 0x31;
    ASSERT_EQ(run({0x0F, 0x22, 0xC0}), Step::Leave); // mov cr0, eax
    EXPECT_TRUE(cpu.mode.protected_mode);
    EXPECT_EQ(cpu.mode.code_bits, 16);
    cpu.rip = 0x100;
    ASSERT_EQ(run({0x66, 0xEA, 0x00, 0x60, 0, 0, 0x08, 0}), Step::Leave);
    EXPECT_EQ(cpu.mode.code_bits, 32);
    EXPECT_EQ(cpu.rip, 0x6000U);
    cpu.cr4 = k_cr4_pae;
    cpu.cr3 = k_pml4;
    cpu.efer = k_efer_lme;
    cpu.reg(Gpr::Rax) = k_cr0_pg | 0x31;
    ASSERT_EQ(run({0x0F, 0x22, 0xC0}), Step::Leave);
    EXPECT_TRUE(cpu.mode.long_mode);
    EXPECT_EQ(cpu.mode.code_bits, 32); // compatibility mode
    ASSERT_EQ(far_jump32(k_code64, 0x7000), Step::Leave);
    EXPECT_EQ(cpu.mode.code_bits, 64);
    EXPECT_EQ(cpu.rip, 0x7000U);
    // Paging cannot be turned off in 64-bit mode.
    cpu.reg(Gpr::Rax) = 0x31;
    expect_fault(run({0x0F, 0x22, 0xC0}), Vector::GP, 0);
}

TEST_F(TransferTest, FarJumpChecks) {
    protected32();
    expect_fault(far_jump32(0, 0), Vector::GP, 0);
    expect_fault(far_jump32(k_data, 0), Vector::GP, k_data);
    expect_fault(far_jump32(k_user_code32, 0), Vector::GP, k_user_code32 & ~3U);
    expect_fault(far_jump32(k_tss, 0), Vector::GP, k_tss);
    expect_fault(far_jump32(k_code16, 0x10000), Vector::GP, 0);
    memory.put<uint64_t>(k_gdt + k_absent, 0x00CF1B000000FFFF);
    expect_fault(far_jump32(k_absent, 0), Vector::NP, k_absent);
    EXPECT_EQ(cpu.rip, 0x5000U);
    protected32(3);
    expect_fault(far_jump32(k_code32 | 3, 0), Vector::GP, k_code32);
    EXPECT_EQ(far_jump32(k_conforming, 0x123), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).selector, k_conforming | 3);
}

TEST_F(TransferTest, FarCallAndReturn) {
    protected32();
    ASSERT_EQ(run({0x9A, 0x00, 0x60, 0, 0, 0x08, 0}), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x6000U);
    EXPECT_EQ(memory.get<uint32_t>(0x7FF8), 0x5007U);
    EXPECT_EQ(memory.get<uint32_t>(0x7FFC), k_code32);
    ASSERT_EQ(run({0xCA, 0x10, 0x00}), Step::Leave); // retf 16
    EXPECT_EQ(cpu.rip, 0x5007U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8010U);
    // To an outer level: SS:ESP behind the parameters.
    uint64_t at = 0x8000;
    for (uint32_t value : {0x6000U, 0x23U, 0U, 0U, 0x7000U, 0x2BU}) memory.put<uint32_t>(at, value), at += 4;
    cpu.reg(Gpr::Rsp) = 0x8000;
    ASSERT_EQ(run({0xCA, 0x08, 0x00}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x7008U);
    EXPECT_EQ(cpu.segment(SegmentName::Ds).selector, 0);
    // And not to an inner one.
    memory.put<uint32_t>(0x7008, 0x6000);
    memory.put<uint32_t>(0x700C, k_code32);
    expect_fault(run({0xCB}), Vector::GP, k_code32);
}

TEST_F(TransferTest, CallGateCopiesParameters) {
    protected32(3);
    call_gate(k_code32, 0x6000, 0xEC, 2);
    memory.put<uint32_t>(0x8000, 0xAAAA);
    memory.put<uint32_t>(0x8004, 0xBBBB);
    ASSERT_EQ(run({0x9A, 0, 0, 0, 0, 0x73, 0}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 0);
    EXPECT_EQ(cpu.rip, 0x6000U);
    uint64_t const sp = k_ring0_stack - 24;
    EXPECT_EQ(cpu.reg(Gpr::Rsp), sp);
    std::array<uint32_t, 6> const expected{0x5007, k_user_code32, 0xAAAA, 0xBBBB, 0x8000, k_user_data};
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(memory.get<uint32_t>(sp + i * 4), expected[i]);
    ASSERT_EQ(run({0xCA, 8, 0}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8008U);
    call_gate(k_code32, 0x6000, 0x8C, 0);
    expect_fault(run({0x9A, 0, 0, 0, 0, 0x73, 0}), Vector::GP, k_gate);
    // A jump through a gate cannot raise the level.
    call_gate(k_code32, 0x6000, 0xEC, 0);
    expect_fault(far_jump32(k_gate | 3, 0), Vector::GP, k_code32);
}

TEST_F(TransferTest, CallGateInLongMode) {
    long_mode(3);
    call_gate(k_code64, 0x6000, 0xEC, 0);
    memory.put<uint64_t>(0x4000, uint64_t{k_gate | 3} << 32);
    cpu.reg(Gpr::Rax) = 0x4000;
    ASSERT_EQ(run({0xFF, 0x18}), Step::Leave); // call far [rax]
    EXPECT_EQ(cpu.mode.cpl, 0);
    EXPECT_EQ(cpu.rip, 0x6000U);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, 0);
    EXPECT_EQ(memory.get(cpu.reg(Gpr::Rsp)), 0x5002U);
    EXPECT_EQ(memory.get(cpu.reg(Gpr::Rsp) + 24), k_user_data);
    ASSERT_EQ(run({0x48, 0xCB}), Step::Leave); // retfq
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
}

TEST_F(TransferTest, SyscallAndSysret) {
    long_mode(3);
    cpu.star = uint64_t{k_user_code32} << 48 | uint64_t{k_data - 8} << 32;
    cpu.lstar = 0x6000;
    cpu.sfmask = k_if | k_df;
    cpu.rflags |= k_if | k_df | k_cf;
    ASSERT_EQ(run({0x0F, 0x05}), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x6000U);
    EXPECT_EQ(cpu.mode.cpl, 0);
    EXPECT_EQ(cpu.mode.code_bits, 64);
    EXPECT_EQ(cpu.reg(Gpr::Rcx), 0x5002U);
    EXPECT_EQ(cpu.reg(Gpr::R11), k_fixed_flag | k_if | k_df | k_cf);
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_cf);
    ASSERT_EQ(run({0x48, 0x0F, 0x07}), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x5002U);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).selector, k_user_code64);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, k_user_data);
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_if | k_df | k_cf);
    expect_fault(run({0x48, 0x0F, 0x07}), Vector::GP, 0); // not at level 3
    cpu.efer &= ~k_efer_sce;
    expect_fault(run({0x0F, 0x05}), Vector::UD);
}

TEST_F(TransferTest, SysenterAndSysexit) {
    protected32(3);
    expect_fault(run({0x0F, 0x34}), Vector::GP, 0);
    cpu.sysenter_cs = k_code32;
    cpu.sysenter_eip = 0x6000;
    cpu.sysenter_esp = 0x9000;
    cpu.rflags |= k_if;
    ASSERT_EQ(run({0x0F, 0x34}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 0);
    EXPECT_EQ(cpu.rip, 0x6000U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x9000U);
    EXPECT_FALSE(cpu.rflags & k_if);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, k_data);
    cpu.reg(Gpr::Rdx) = 0x7000;
    cpu.reg(Gpr::Rcx) = 0xB000;
    ASSERT_EQ(run({0x0F, 0x35}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.rip, 0x7000U);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).selector, (k_code32 + 16) | 3);
}

TEST_F(TransferTest, SwapgsAndThreadBases) {
    long_mode(0);
    cpu.kernel_gs_base = 0xFFFF'8880'0000'0000;
    EXPECT_EQ(run({0x0F, 0x01, 0xF8}), Step::Next);
    EXPECT_EQ(cpu.thread_bases[1], 0xFFFF'8880'0000'0000U);
    EXPECT_EQ(cpu.segment(SegmentName::Gs).base, cpu.thread_bases[1]);
    EXPECT_EQ(cpu.kernel_gs_base, 0U);
    expect_fault(run({0xF3, 0x48, 0x0F, 0xAE, 0xD0}), Vector::UD); // wrfsbase rax without CR4.FSGSBASE
    cpu.cr4 |= k_cr4_fsgsbase;
    cpu.reg(Gpr::Rax) = 0x1234'5678'9000;
    EXPECT_EQ(run({0xF3, 0x48, 0x0F, 0xAE, 0xD0}), Step::Next);
    EXPECT_EQ(cpu.thread_bases[0], 0x1234'5678'9000U);
    EXPECT_EQ(run({0xF3, 0x0F, 0xAE, 0xC3}), Step::Next); // rdfsbase ebx
    EXPECT_EQ(cpu.reg(Gpr::Rbx), 0x5678'9000U);
    cpu.reg(Gpr::Rax) = 0x0000'8000'0000'0000;
    expect_fault(run({0xF3, 0x48, 0x0F, 0xAE, 0xD0}), Vector::GP, 0);
    // A load of FS replaces the base.
    cpu.reg(Gpr::Rax) = k_small_data;
    EXPECT_EQ(run({0x8E, 0xE0}), Step::Leave);
    EXPECT_EQ(cpu.thread_bases[0], 0x8000U);
}

TEST_F(TransferTest, AccessRightsAndLimits) {
    protected32();
    auto query = [&](std::initializer_list<uint8_t> bytes, uint16_t selector) {
        cpu.reg(Gpr::Rax) = selector;
        cpu.reg(Gpr::Rbx) = 0;
        EXPECT_EQ(run(bytes), Step::Next);
        return static_cast<bool>(cpu.rflags & k_zf);
    };
    EXPECT_TRUE(query({0x0F, 0x02, 0xD8}, k_code32)); // lar ebx, eax
    EXPECT_EQ(cpu.reg(Gpr::Rbx), 0x00C09B00U);
    EXPECT_TRUE(query({0x0F, 0x03, 0xD8}, k_small_data)); // lsl ebx, eax
    EXPECT_EQ(cpu.reg(Gpr::Rbx), 0xFFFU);
    EXPECT_FALSE(query({0x0F, 0x02, 0xD8}, 0));
    EXPECT_FALSE(query({0x0F, 0x02, 0xD8}, 0x1000));
    EXPECT_TRUE(query({0x0F, 0x00, 0xE8}, k_data)); // verw ax
    EXPECT_FALSE(query({0x0F, 0x00, 0xE8}, k_read_only));
    EXPECT_TRUE(query({0x0F, 0x00, 0xE0}, k_read_only)); // verr ax
    EXPECT_FALSE(query({0x0F, 0x00, 0xE8}, k_code32));
    protected32(3);
    EXPECT_FALSE(query({0x0F, 0x02, 0xD8}, k_data));
    EXPECT_TRUE(query({0x0F, 0x02, 0xD8}, k_user_data));
    cpu.reg(Gpr::Rax) = 0x0008;
    cpu.reg(Gpr::Rbx) = 0x0003;
    EXPECT_EQ(run({0x63, 0xD8}), Step::Next); // arpl ax, bx
    EXPECT_EQ(cpu.reg(Gpr::Rax), 0x000BU);
    EXPECT_TRUE(cpu.rflags & k_zf);
}

} // namespace
} // namespace coffer::tests
