// Events through the IDT and the real-mode vector table; IRET and double faults. Intel SDM vol. 3, chapter 6.
#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {
namespace {

constexpr uint16_t k_interrupt_gate = 0x8E, k_trap_gate = 0x8F, k_user_gate = 0xEE, k_interrupt16_gate = 0x86;

class DeliveryTest : public SoftCpuTest {
protected:
    Step deliver(Vector vector) {
        raise(cpu, vector);
        return deliver_fault(cpu);
    }
    Step deliver(Vector vector, uint32_t error) {
        raise(cpu, vector, error);
        return deliver_fault(cpu);
    }
    uint64_t stack64(unsigned slot) { return memory.get(cpu.reg(Gpr::Rsp) + slot * 8); }
    uint32_t stack32(unsigned slot) { return memory.get<uint32_t>(cpu.reg(Gpr::Rsp) + slot * 4); }
};

TEST_F(DeliveryTest, RealModeVectorTable) {
    cpu.segment(SegmentName::Cs) = {.selector = 0x100, .attributes = 0x9B, .limit = 0xFFFF, .base = 0x1000};
    update_mode(cpu);
    cpu.rip = 0x234;
    cpu.reg(Gpr::Rsp) = 0xAAAA'8000;
    cpu.rflags = k_fixed_flag | k_if | k_cf;
    memory.put<uint32_t>(0x21 * 4, 0x0200'0042);
    ASSERT_EQ(deliver_interrupt(cpu, 0x21), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x42U);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).base, 0x2000U);
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_cf);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0xAAAA'7FFAU);
    EXPECT_EQ(memory.get<uint16_t>(0x7FFA), 0x234);
    EXPECT_EQ(memory.get<uint16_t>(0x7FFC), 0x100);
    EXPECT_EQ(memory.get<uint16_t>(0x7FFE), 0x203);
    ASSERT_EQ(run({0xCF}), Step::Leave); // iret
    EXPECT_EQ(cpu.rip, 0x234U);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).base, 0x1000U);
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_if | k_cf);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0xAAAA'8000U);
}

TEST_F(DeliveryTest, RealModeTableLimitEndsInShutdown) {
    cpu.idtr = {.base = 0, .limit = 0x0F};
    EXPECT_EQ(deliver(Vector::GP, 0), Step::Shutdown);
}

TEST_F(DeliveryTest, SameLevelInProtectedMode) {
    protected32();
    idt32(14, k_code32, 0x1234'5678, k_interrupt_gate);
    cpu.rflags |= k_if | k_tf;
    cpu.fault = {.vector = Vector::PF, .has_error = true, .error = 2, .cr2 = 0xABC};
    ASSERT_EQ(deliver_fault(cpu), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x1234'5678U);
    EXPECT_EQ(cpu.cr2, 0xABCU);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U - 16);
    EXPECT_EQ(stack32(0), 2U);
    EXPECT_EQ(stack32(1), 0x5000U);
    EXPECT_EQ(stack32(2), k_code32);
    EXPECT_EQ(stack32(3), k_fixed_flag | k_if | k_tf | k_rf);
    EXPECT_EQ(cpu.rflags, k_fixed_flag);
}

TEST_F(DeliveryTest, TrapGatesKeepIf) {
    protected32();
    idt32(0x80, k_code32, 0x6000, k_trap_gate);
    cpu.rflags |= k_if;
    ASSERT_EQ(run({0xCD, 0x80}), Step::Leave);
    EXPECT_TRUE(cpu.rflags & k_if);
    EXPECT_EQ(stack32(0), 0x5002U);
    EXPECT_FALSE(stack32(2) & k_rf);
}

TEST_F(DeliveryTest, InnerLevelSwitchesStacks32) {
    protected32(3);
    idt32(0x80, k_code32, 0x6000, k_user_gate);
    cpu.rflags |= k_if;
    ASSERT_EQ(run({0xCD, 0x80}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 0);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, k_data);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).selector, k_code32);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), k_ring0_stack - 20);
    EXPECT_EQ(stack32(0), 0x5002U);
    EXPECT_EQ(stack32(1), k_user_code32);
    EXPECT_EQ(stack32(3), 0x8000U);
    EXPECT_EQ(stack32(4), k_user_data);
    // And back: DS of level 0 must not be left to level 3.
    cpu.segment(SegmentName::Ds) = from_gdt(k_data);
    ASSERT_EQ(run({0xCF}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.rip, 0x5002U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
    EXPECT_EQ(cpu.segment(SegmentName::Ds).selector, 0);
    EXPECT_EQ(cpu.segment(SegmentName::Es).selector, k_user_data);
}

TEST_F(DeliveryTest, SixteenBitGates) {
    protected32();
    idt32(3, k_code32, 0xFFFF'6000, k_interrupt16_gate);
    ASSERT_EQ(run({0xCC}), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x6000U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U - 6);
    EXPECT_EQ(memory.get<uint16_t>(0x7FFA), 0x5001);
}

TEST_F(DeliveryTest, SoftwareInterruptsNeedTheGatesLevel) {
    protected32(3);
    idt32(0x80, k_code32, 0x6000, k_interrupt_gate);
    expect_fault(run({0xCD, 0x80}), Vector::GP, 0x80 * 8 + 2);
    EXPECT_EQ(cpu.rip, 0x5000U);
    EXPECT_EQ(cpu.mode.cpl, 3);
    // A hardware interrupt through the same gate is fine.
    EXPECT_EQ(deliver_interrupt(cpu, 0x80), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x6000U);
}

TEST_F(DeliveryTest, ErrorCodesOfExternalEventsHaveExt) {
    protected32();
    idt32(13, k_code32, 0x6000, k_interrupt_gate);
    idt32(0x20, k_code32, 0x7000, 0x0E); // not present
    idt32(11, k_code32, 0x6100, k_interrupt_gate);
    cpu.rip = 0x5000;
    cpu.reg(Gpr::Rsp) = 0x8000;
    ASSERT_EQ(deliver_interrupt(cpu, 0x20), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x6100U);
    EXPECT_EQ(stack32(0), 0x20U * 8 + 2 + 1);
    EXPECT_EQ(stack32(1), 0x5000U);
    expect_fault(run({0xCD, 0x20}), Vector::NP, 0x20 * 8 + 2);
}

TEST_F(DeliveryTest, DoubleFaultRules) {
    protected32();
    idt32(8, k_code32, 0x8888, k_interrupt_gate);
    // #GP whose gate is missing: contributory twice.
    ASSERT_EQ(deliver(Vector::GP, 0x10), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x8888U);
    EXPECT_EQ(stack32(0), 0U);
    // #UD is benign: its missing gate's #GP is delivered by itself.
    idt32(13, k_code32, 0xDDDD, k_interrupt_gate);
    ASSERT_EQ(deliver(Vector::UD), Step::Leave);
    EXPECT_EQ(cpu.rip, 0xDDDDU);
    EXPECT_EQ(stack32(0), 6U * 8 + 2 + 1);
    // #PF then #GP is a double fault.
    ASSERT_EQ(deliver(Vector::PF, 0), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x8888U);
}

TEST_F(DeliveryTest, FaultInDoubleFaultShutsDown) {
    protected32();
    EXPECT_EQ(deliver(Vector::GP, 0), Step::Shutdown);
}

TEST_F(DeliveryTest, TaskGatesAreRefused) {
    protected32();
    idt32(3, k_tss, 0, 0x85);
    expect_fault(run({0xCC}), Vector::GP, 3 * 8 + 2);
}

TEST_F(DeliveryTest, LongModeSameLevel) {
    long_mode(0);
    idt64(14, k_code64, 0x12'3456, k_interrupt_gate);
    cpu.reg(Gpr::Rsp) = 0x8008 + 5;
    cpu.rflags |= k_if;
    cpu.fault = {.vector = Vector::PF, .has_error = true, .error = 2, .cr2 = 0xABC};
    ASSERT_EQ(deliver_fault(cpu), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x12'3456U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U - 48); // aligned before the frame
    EXPECT_EQ(stack64(0), 2U);
    EXPECT_EQ(stack64(1), 0x5000U);
    EXPECT_EQ(stack64(2), k_code64);
    EXPECT_EQ(stack64(3), k_fixed_flag | k_if | k_rf);
    EXPECT_EQ(stack64(4), 0x800DU);
    EXPECT_EQ(stack64(5), k_data);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, k_data);
    cpu.reg(Gpr::Rsp) += 8;
    ASSERT_EQ(run({0x48, 0xCF}), Step::Leave); // iretq
    EXPECT_EQ(cpu.rip, 0x5000U);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x800DU);
    EXPECT_TRUE(cpu.rflags & k_if);
}

TEST_F(DeliveryTest, LongModeFromUserAndBack) {
    long_mode(3);
    idt64(0x20, k_code64, 0x6000, k_interrupt_gate);
    cpu.segment(SegmentName::Gs).base = cpu.thread_bases[1] = 0x7000;
    ASSERT_EQ(deliver_interrupt(cpu, 0x20), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 0);
    EXPECT_EQ(cpu.tlb_active, &cpu.tlb[0]);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, 0); // null with RPL 0
    EXPECT_EQ(stack64(4), k_user_data);
    EXPECT_FALSE(stack64(2) & k_rf);
    ASSERT_EQ(run({0x48, 0xCF}), Step::Leave);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.tlb_active, &cpu.tlb[1]);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
    EXPECT_EQ(cpu.segment(SegmentName::Ss).selector, k_user_data);
    EXPECT_EQ(cpu.thread_bases[1], 0x7000U); // a null selector keeps its base
}

TEST_F(DeliveryTest, InterruptStackTable) {
    long_mode(0);
    idt64(2, k_code64, 0x6000, k_interrupt_gate, 1);
    ASSERT_EQ(deliver_nmi(cpu), Step::Leave);
    EXPECT_TRUE(cpu.nmi_blocked);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), k_ist_stack - 40);
    EXPECT_EQ(stack64(3), 0x8000U);
    ASSERT_EQ(run({0x48, 0xCF}), Step::Leave);
    EXPECT_FALSE(cpu.nmi_blocked);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
}

TEST_F(DeliveryTest, LongModeGatesNeedLongCode) {
    long_mode(0);
    idt64(3, k_code32, 0x6000, k_interrupt_gate);
    expect_fault(run({0xCC}), Vector::GP, k_code32);
}

TEST_F(DeliveryTest, StackFaultDuringDeliveryLeavesStateAlone) {
    long_mode(3);
    idt64(0x80, k_code64, 0x6000, k_user_gate);
    memory.put<uint64_t>(k_task + 4, k_test_linear + 8); // unmapped
    Segment const before = cpu.segment(SegmentName::Cs);
    expect_fault(run({0xCD, 0x80}), Vector::PF, 2);
    EXPECT_EQ(cpu.segment(SegmentName::Cs).selector, before.selector);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x8000U);
    EXPECT_EQ(cpu.rip, 0x5000U);
}

TEST_F(DeliveryTest, IretChecksWhatItPops) {
    long_mode(0);
    auto frame = [&](uint64_t rip, uint64_t cs, uint64_t flags, uint64_t rsp, uint64_t ss) {
        cpu.reg(Gpr::Rsp) = 0x8000;
        uint64_t at = 0x8000;
        for (uint64_t value : {rip, cs, flags, rsp, ss}) memory.put<uint64_t>(at, value), at += 8;
    };
    frame(0x6000, 0, 2, 0x7000, k_user_data);
    expect_fault(run({0x48, 0xCF}), Vector::GP, 0);
    frame(0x6000, k_data, 2, 0x7000, k_data);
    expect_fault(run({0x48, 0xCF}), Vector::GP, k_data);
    frame(0x6000, k_user_code64, 2, 0x7000, k_data);
    expect_fault(run({0x48, 0xCF}), Vector::GP, k_data);
    frame(0x6000, k_user_code64, 2, 0x7000, 0);
    expect_fault(run({0x48, 0xCF}), Vector::GP, 0);
    frame(0x0000'8000'0000'0000, k_user_code64, 2, 0x7000, k_user_data);
    expect_fault(run({0x48, 0xCF}), Vector::GP, 0);
    EXPECT_EQ(cpu.rip, 0x5000U);
    EXPECT_EQ(cpu.mode.cpl, 0);
    frame(0x6000, k_user_code32, k_if | k_iopl | 2, 0x1'0000'7000, k_user_data); // to compatibility mode
    ASSERT_EQ(run({0x48, 0xCF}), Step::Leave);
    EXPECT_EQ(cpu.mode.code_bits, 32);
    EXPECT_EQ(cpu.mode.cpl, 3);
    EXPECT_TRUE(cpu.mode.long_mode);
    EXPECT_EQ(cpu.segment(SegmentName::Ds).selector, 0);
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x7000U);
    // From level 3 IRET can change neither IOPL nor, above IOPL, IF.
    cpu.rflags = k_fixed_flag | k_if;
    memory.put<uint32_t>(0x7000, 0x6100);
    memory.put<uint32_t>(0x7004, k_user_code32);
    memory.put<uint32_t>(0x7008, k_iopl | k_cf | 2);
    ASSERT_EQ(run({0xCF}), Step::Leave);
    EXPECT_EQ(cpu.rflags, k_fixed_flag | k_if | k_cf);
    EXPECT_EQ(cpu.rip, 0x6100U);
}

TEST_F(DeliveryTest, IretFromNestedTaskAndToVirtual8086AreRefused) {
    protected32();
    cpu.rflags |= k_nt;
    expect_fault(run({0xCF}), Vector::GP, 0);
    cpu.rflags &= ~k_nt;
    memory.put<uint32_t>(0x8000, 0x100);
    memory.put<uint32_t>(0x8004, 0x200);
    memory.put<uint32_t>(0x8008, static_cast<uint32_t>(k_vm | 2));
    expect_fault(run({0xCF}), Vector::GP, 0);
}

TEST_F(DeliveryTest, SingleStepAndDebugGuard) {
    protected32();
    idt32(1, k_code32, 0x6000, k_interrupt_gate);
    cpu.rflags |= k_tf;
    ASSERT_EQ(deliver_single_step(cpu), Step::Leave);
    EXPECT_EQ(cpu.rip, 0x6000U);
    EXPECT_TRUE(cpu.debug.dr6 & bit(14));
    EXPECT_TRUE(stack32(2) & k_tf);
    EXPECT_FALSE(stack32(2) & k_rf);
    EXPECT_FALSE(cpu.rflags & k_tf);
    cpu.debug.dr7 |= bit(13);
    expect_fault(run({0x0F, 0x21, 0xF0}), Vector::DB); // mov eax, dr6
    EXPECT_TRUE(cpu.debug.dr6 & bit(13));
    ASSERT_EQ(deliver_fault(cpu), Step::Leave);
    EXPECT_EQ(run({0x0F, 0x21, 0xF0}), Step::Next);
}

TEST_F(DeliveryTest, InterruptShadowCoversOneInstruction) {
    protected32();
    EXPECT_EQ(run({0xFB}), Step::Leave); // sti
    EXPECT_TRUE(cpu.interrupt_shadow);
    EXPECT_EQ(run({0xFB}), Step::Next);
    EXPECT_FALSE(cpu.interrupt_shadow);
    cpu.reg(Gpr::Rax) = k_data;
    EXPECT_EQ(run({0x8E, 0xD0}), Step::Leave); // mov ss, eax
    EXPECT_TRUE(cpu.interrupt_shadow);
    EXPECT_EQ(run({0xF4}), Step::Halt);
    EXPECT_FALSE(cpu.interrupt_shadow);
}

} // namespace
} // namespace coffer::tests
