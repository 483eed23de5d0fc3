// The page walk against the access rules of Intel SDM vol. 3, 4.6 and 4.7, and the TLB's flushes.
#include "tests/unit/soft/system/harness.hpp"

namespace coffer::tests {
namespace {

constexpr uint64_t k_p = 1, k_w = 2, k_u = 4, k_a = 0x20, k_d = 0x40, k_ps = 0x80, k_g = 0x100, k_nx = bit(63);
constexpr uint64_t k_frame = 0x20000;

class MmuTest : public SoftCpuTest {
protected:
    bool access(Access kind, uint64_t linear = k_test_linear) {
        uint64_t value = 0;
        cpu.fault = {};
        switch (kind) {
        case Access::Read: return memory_read(cpu, linear, &value, 8);
        case Access::Write: return memory_write(cpu, linear, &value, 8);
        case Access::Execute: {
            FetchPage page;
            return fetch_translate(cpu, linear, page);
        }
        }
        return false;
    }
    void expect_page_fault(Access kind, uint32_t error, uint64_t linear = k_test_linear) {
        ASSERT_FALSE(access(kind, linear));
        EXPECT_EQ(cpu.fault.vector, Vector::PF);
        EXPECT_EQ(cpu.fault.error, error);
        EXPECT_EQ(cpu.fault.cr2, linear);
    }
    uint64_t entry(unsigned index = 0) { return memory.get(k_pt + index * 8); }
    TlbEntry& tlb(unsigned set, uint64_t linear) { return cpu.tlb[set].entries[tlb_index(linear)]; }
    bool cached(unsigned set, uint64_t linear) { return tlb(set, linear).read_tag == (linear & k_page_mask); }
};

TEST_F(MmuTest, NotPresentErrorCodesNameTheAccess) {
    long_mode(0);
    expect_page_fault(Access::Read, 0);
    expect_page_fault(Access::Write, 2);
    expect_page_fault(Access::Execute, 16);
    long_mode(3);
    expect_page_fault(Access::Read, 4);
    expect_page_fault(Access::Write, 6);
    expect_page_fault(Access::Execute, 20);
    cpu.efer &= ~k_efer_nxe; // without NX and SMEP the fetch bit stays clear
    expect_page_fault(Access::Execute, 4);
}

TEST_F(MmuTest, UserNeedsUserPages) {
    long_mode(3);
    map(0, k_frame | k_p | k_w);
    expect_page_fault(Access::Read, 5);
    expect_page_fault(Access::Write, 7);
    expect_page_fault(Access::Execute, 21);
    map(0, k_frame | k_p | k_u);
    EXPECT_TRUE(access(Access::Read));
    EXPECT_TRUE(access(Access::Execute));
    expect_page_fault(Access::Write, 7);
    // One level without U/S or R/W is enough.
    map(0, k_frame | k_p | k_w | k_u);
    memory.put<uint64_t>(k_pd_test, k_pt | k_p | k_u);
    flush_tlb_all(cpu);
    EXPECT_TRUE(access(Access::Read));
    expect_page_fault(Access::Write, 7);
}

TEST_F(MmuTest, WriteProtectionOfTheSupervisorHangsOnWp) {
    long_mode(0);
    map(0, k_frame | k_p);
    expect_page_fault(Access::Write, 3);
    EXPECT_TRUE(access(Access::Read));
    cpu.cr0 &= ~k_cr0_wp;
    flush_tlb_all(cpu);
    EXPECT_TRUE(access(Access::Write));
    EXPECT_EQ(entry() & (k_a | k_d), k_a | k_d);
}

TEST_F(MmuTest, NoExecute) {
    long_mode(0);
    map(0, k_frame | k_p | k_w | k_nx);
    EXPECT_TRUE(access(Access::Read));
    expect_page_fault(Access::Execute, 17);
    cpu.efer &= ~k_efer_nxe;
    flush_tlb_all(cpu);
    expect_page_fault(Access::Read, 9); // bit 63 is reserved then
}

TEST_F(MmuTest, SmepAndSmapGuardUserPages) {
    long_mode(0);
    map(0, k_frame | k_p | k_w | k_u);
    EXPECT_TRUE(access(Access::Execute));
    cpu.cr4 |= k_cr4_smep;
    expect_page_fault(Access::Execute, 17);
    EXPECT_TRUE(access(Access::Read));
    cpu.cr4 |= k_cr4_smap;
    flush_tlb_all(cpu);
    expect_page_fault(Access::Read, 1);
    expect_page_fault(Access::Write, 3);
    cpu.rflags |= k_ac;
    EXPECT_TRUE(access(Access::Read));
    EXPECT_TRUE(access(Access::Write));
    EXPECT_TRUE(cached(0, k_test_linear));
    EXPECT_EQ(run({0x0F, 0x01, 0xCA}), Step::Next); // clac
    EXPECT_FALSE(cached(0, k_test_linear));
    expect_page_fault(Access::Read, 1);
    EXPECT_FALSE(fill_tlb(cpu, k_test_linear, false));
}

TEST_F(MmuTest, ImplicitAccessesIgnoreAc) {
    long_mode(0);
    map(0, k_frame | k_p | k_w | k_u);
    cpu.cr4 |= k_cr4_smap;
    cpu.rflags |= k_ac;
    cpu.gdtr.base = k_test_linear;
    memory.put<uint64_t>(k_frame + k_data, 0x00CF93000000FFFF);
    cpu.reg(Gpr::Rax) = k_data;
    expect_fault(run({0x8E, 0xD8}), Vector::PF, 1); // mov ds, eax
}

TEST_F(MmuTest, ReservedBits) {
    long_mode(0);
    map(0, k_frame | k_p | k_w | bit(k_physical_address_bits));
    expect_page_fault(Access::Read, 9);
    expect_page_fault(Access::Write, 11);
    map(0, k_frame | k_p | k_w | bit(52) | bit(58)); // ignored
    EXPECT_TRUE(access(Access::Read));
    memory.put<uint64_t>(k_pd_test, 0x200000 | k_p | k_w | k_ps | bit(13));
    flush_tlb_all(cpu);
    expect_page_fault(Access::Read, 9);
    memory.put<uint64_t>(k_pml4, k_pdpt | 7 | k_ps);
    flush_tlb_all(cpu);
    expect_page_fault(Access::Read, 9);
}

TEST_F(MmuTest, AccessedAndDirty) {
    long_mode(0);
    map(0, k_frame | k_p | k_w);
    ASSERT_TRUE(access(Access::Read));
    EXPECT_EQ(entry() & (k_a | k_d), k_a);
    EXPECT_TRUE(memory.get(k_pd_test) & k_a);
    EXPECT_TRUE(memory.get(k_pdpt + 8) & k_a);
    EXPECT_TRUE(memory.get(k_pml4) & k_a);
    EXPECT_FALSE(memory.get(k_pd_test) & k_d);
    // A clean page must not become writable in the TLB by a read.
    EXPECT_NE(tlb(0, k_test_linear).write_tag, k_test_linear);
    ASSERT_TRUE(access(Access::Write));
    EXPECT_TRUE(entry() & k_d);
    EXPECT_EQ(tlb(0, k_test_linear).write_tag, k_test_linear);
    // A refused access marks nothing.
    map(1, k_frame | k_p);
    ASSERT_FALSE(access(Access::Write, k_test_linear + 0x1000));
    EXPECT_EQ(entry(1) & (k_a | k_d), 0U);
}

TEST_F(MmuTest, LargeAndHugePages) {
    long_mode(0);
    memory.put<uint64_t>(0x201008, uint64_t{0xABCD});
    memory.put<uint64_t>(k_pd_test + 8, 0x200000 | k_p | k_w | k_ps);
    uint64_t value = 0;
    ASSERT_TRUE(memory_read(cpu, k_test_linear + 0x200000 + 0x1008, &value, 8));
    EXPECT_EQ(value, 0xABCDU);
    memory.put<uint64_t>(k_pdpt + 16, 0 | k_p | k_w | k_ps); // 1 GiB at 0x80000000
    ASSERT_TRUE(memory_read(cpu, 0x80201008, &value, 8));
    EXPECT_EQ(value, 0xABCDU);
    ASSERT_TRUE(memory_write(cpu, 0x80201008, &value, 8));
    EXPECT_TRUE(memory.get(k_pdpt + 16) & k_d);
}

TEST_F(MmuTest, InvlpgDropsEveryPieceOfALargePage) {
    long_mode(0);
    uint64_t const base = k_test_linear + 0x200000;
    memory.put<uint64_t>(k_pd_test + 8, 0x200000 | k_p | k_w | k_ps);
    ASSERT_TRUE(access(Access::Read, base));
    ASSERT_TRUE(access(Access::Read, base + 0x5000));
    map(0, k_frame | k_p | k_w);
    ASSERT_TRUE(access(Access::Read, base));
    ASSERT_TRUE(access(Access::Read, base + 0x5000));
    ASSERT_TRUE(access(Access::Read, k_test_linear));
    cpu.reg(Gpr::Rax) = base + 0x1F0000;
    EXPECT_EQ(run({0x0F, 0x01, 0x38}), Step::Leave); // invlpg [rax]
    EXPECT_FALSE(cached(0, base));
    EXPECT_FALSE(cached(0, base + 0x5000));
    EXPECT_TRUE(cached(0, k_test_linear));

    memory.put<uint64_t>(k_pdpt + 16, 0 | k_p | k_w | k_ps);
    ASSERT_TRUE(access(Access::Read, 0x80003000));
    flush_tlb_page(cpu, 0xBFFFF000);
    EXPECT_FALSE(cached(0, 0x80003000));
}

TEST_F(MmuTest, Cr3LoadsKeepGlobalEntries) {
    long_mode(0);
    map(0, k_frame | k_p | k_w);
    map(1, k_frame | k_p | k_w | k_g);
    ASSERT_TRUE(access(Access::Read));
    ASSERT_TRUE(access(Access::Read, k_test_linear + 0x1000));
    translation_changes() = {};
    cpu.reg(Gpr::Rax) = k_pml4;
    EXPECT_EQ(run({0x0F, 0x22, 0xD8}), Step::Leave); // mov cr3, rax
    EXPECT_FALSE(cached(0, k_test_linear));
    EXPECT_TRUE(cached(0, k_test_linear + 0x1000));
    EXPECT_EQ(translation_changes().non_global, 1U);
    EXPECT_EQ(translation_changes().all, 0U);
    // An entry that was replaced since it was listed: global now, so it stays; and the list starts anew each time.
    for (int round = 0; round < 3000; ++round) {
        ASSERT_TRUE(fill_tlb(cpu, k_test_linear, false));
        ASSERT_TRUE(fill_tlb(cpu, k_test_linear + 0x1000, false));
        flush_tlb_page(cpu, k_test_linear);
    }
    EXPECT_LE(cpu.tlb_book.non_global_count[0], k_tlb_entries);
    cpu.reg(Gpr::Rax) = cpu.cr4 & ~k_cr4_pge;
    EXPECT_EQ(run({0x0F, 0x22, 0xE0}), Step::Leave); // mov cr4, rax
    EXPECT_FALSE(cached(0, k_test_linear + 0x1000));
}

TEST_F(MmuTest, GlobalBitCountsOnlyWithPge) {
    long_mode(0);
    cpu.cr4 &= ~k_cr4_pge;
    map(0, k_frame | k_p | k_w | k_g);
    ASSERT_TRUE(access(Access::Read));
    flush_tlb_non_global(cpu);
    EXPECT_FALSE(cached(0, k_test_linear));
}

TEST_F(MmuTest, SetsOfUserAndSupervisorAreApart) {
    long_mode(0);
    map(0, k_frame | k_p | k_w); // supervisor page
    ASSERT_TRUE(access(Access::Read));
    cpu.segment(SegmentName::Cs) = from_gdt(k_user_code64);
    cpu.segment(SegmentName::Ss) = from_gdt(k_user_data);
    update_mode(cpu);
    EXPECT_EQ(cpu.tlb_active, &cpu.tlb[1]);
    EXPECT_FALSE(fill_tlb(cpu, k_test_linear, false));
    expect_page_fault(Access::Read, 5);
}

TEST_F(MmuTest, InvalidTagsMatchNoLookup) {
    flush_tlb_all(cpu);
    for (size_t index = 0; index < k_tlb_entries; ++index) {
        uint64_t const tag = cpu.tlb[0].entries[index].read_tag;
        for (uint64_t high : std::array<uint64_t, 3>{0, 0xFFFF'8000'0000'0000, 0x8000'0000'0000'0000}) {
            uint64_t const linear = high | index << 12;
            EXPECT_GT(linear ^ tag, k_page_size - 1);
        }
    }
}

TEST_F(MmuTest, NonCanonicalAddressesAreNoPageFaults) {
    long_mode(0);
    ASSERT_FALSE(access(Access::Read, 0x0000'8000'0000'0000));
    EXPECT_EQ(cpu.fault.vector, Vector::GP);
    EXPECT_EQ(cpu.fault.error, 0U);
    EXPECT_FALSE(fill_tlb(cpu, 0x0000'8000'0000'0000, false));
    cpu.reg(Gpr::Rsp) = 0x0000'8000'0000'0010;
    expect_fault(run({0x50}), Vector::SS, 0); // push rax
    EXPECT_EQ(cpu.reg(Gpr::Rsp), 0x0000'8000'0000'0010U);
}

TEST_F(MmuTest, PaePaging) {
    protected32();
    // PDPT at 0x30000, PD at 0x31000, PT at 0x32000; linear 0x40000000.
    memory.put<uint64_t>(0x30000, 0x33000 | k_p);
    for (uint64_t i = 0; i < 2; ++i) memory.put<uint64_t>(0x33000 + i * 8, i << 21 | 0x83);
    memory.put<uint64_t>(0x30008, 0x31000 | k_p);
    memory.put<uint64_t>(0x31000, 0x32000 | k_p | k_w);
    memory.put<uint64_t>(0x32000, k_frame | k_p | k_w | k_nx);
    cpu.efer = k_efer_nxe;
    cpu.cr4 = k_cr4_pae;
    cpu.cr3 = 0x30000;
    cpu.reg(Gpr::Rax) = cpu.cr0 | k_cr0_pg | k_cr0_wp;
    ASSERT_EQ(run({0x0F, 0x22, 0xC0}), Step::Leave); // mov cr0, eax
    EXPECT_FALSE(cpu.mode.long_mode);
    EXPECT_TRUE(access(Access::Write));
    expect_page_fault(Access::Execute, 17);
    EXPECT_FALSE(memory.get(0x30008) & k_a); // PDPTEs carry no accessed bit
    EXPECT_TRUE(memory.get(0x31000) & k_a);
    memory.put<uint64_t>(0x32000, k_frame | k_p | k_w | bit(55)); // reserved in PAE paging
    flush_tlb_all(cpu);
    expect_page_fault(Access::Read, 9);
    // A CR3 load checks the four pointers.
    memory.put<uint64_t>(0x30018, 0x34000 | k_p | k_w);
    cpu.reg(Gpr::Rax) = 0x30000;
    expect_fault(run({0x0F, 0x22, 0xD8}), Vector::GP, 0);
}

TEST_F(MmuTest, ThirtyTwoBitPagingWithPse) {
    protected32();
    memory.put<uint32_t>(0x30000, 0x83 | 4);                // 4 MiB identity
    memory.put<uint32_t>(0x30000 + 0x100 * 4, 0x31000 | 7); // linear 0x40000000
    memory.put<uint32_t>(0x31000, k_frame | 5);
    cpu.cr3 = 0x30000;
    cpu.cr4 = k_cr4_pse;
    cpu.cr0 |= k_cr0_pg | k_cr0_wp;
    update_mode(cpu);
    flush_tlb_all(cpu);
    uint64_t value = 0x77;
    ASSERT_TRUE(memory_write(cpu, 0x3F0000, &value, 8));
    EXPECT_EQ(memory.get(0x3F0000), 0x77U);
    EXPECT_EQ(memory.get<uint32_t>(0x30000) & 0x60, 0x60U);
    EXPECT_TRUE(access(Access::Read));
    expect_page_fault(Access::Write, 3);
    EXPECT_EQ(memory.get<uint32_t>(0x31000) & 0x60, 0x20U);
    memory.put<uint32_t>(0x30000 + 4, 0x83 | 1 << 21);
    expect_page_fault(Access::Read, 9, 0x400000);
    // PSE-36: bits 20:13 are address bits 39:32; such a page is no RAM here.
    memory.put<uint32_t>(0x30000 + 4, 0x83 | 1 << 13);
    ASSERT_TRUE(access(Access::Read, 0x400000));
    EXPECT_EQ(io.log.back().address, 0x1'0000'0000U);
}

TEST_F(MmuTest, SplitWritesHappenWholeOrNotAtAll) {
    long_mode(0);
    map(0, k_frame | k_p | k_w);
    uint64_t value = ~uint64_t{0};
    ASSERT_FALSE(memory_write(cpu, k_test_linear + 0xFFC, &value, 8));
    EXPECT_EQ(cpu.fault.cr2, k_test_linear + 0x1000);
    EXPECT_EQ(memory.get<uint32_t>(k_frame + 0xFFC), 0U);
    map(1, (k_frame + 0x3000) | k_p | k_w);
    ASSERT_TRUE(memory_write(cpu, k_test_linear + 0xFFC, &value, 8));
    EXPECT_EQ(memory.get<uint32_t>(k_frame + 0xFFC), 0xFFFFFFFFU);
    EXPECT_EQ(memory.get<uint32_t>(k_frame + 0x3000), 0xFFFFFFFFU);
}

TEST_F(MmuTest, MmioIsSplitIntoAlignedPiecesOfAtMostEight) {
    long_mode(0);
    map(0, 0xFE00'0000 | k_p | k_w);
    std::array<uint8_t, 16> raw{};
    for (size_t i = 0; i < raw.size(); ++i) raw[i] = static_cast<uint8_t>(i);
    ASSERT_TRUE(memory_write(cpu, k_test_linear + 6, raw.data(), 16));
    std::vector<RecordingIo::Access> const expected{
        {true, false, 0xFE000006, 2, 0x0100},
        {true, false, 0xFE000008, 8, 0x0908070605040302},
        {true, false, 0xFE000010, 4, 0x0D0C0B0A},
        {true, false, 0xFE000014, 2, 0x0F0E},
    };
    EXPECT_EQ(io.log, expected);
    EXPECT_FALSE(fill_tlb(cpu, k_test_linear, false));
    uint64_t value = 0;
    ASSERT_TRUE(memory_read(cpu, k_test_linear, &value, 8));
    EXPECT_EQ(value, io.answer);
}

TEST_F(MmuTest, RomAndCodePagesTakeTheSlowPath) {
    long_mode(0);
    map(0, k_frame | k_p | k_w);
    memory.rom.insert(k_frame);
    EXPECT_FALSE(fill_tlb(cpu, k_test_linear, true));
    EXPECT_TRUE(fill_tlb(cpu, k_test_linear, false));
    uint32_t value = 0x12345678;
    ASSERT_TRUE(memory_write(cpu, k_test_linear + 4, &value, 4));
    ASSERT_EQ(io.log.size(), 1U);
    EXPECT_EQ(io.log[0], (RecordingIo::Access{true, false, k_frame + 4, 4, 0x12345678}));
    EXPECT_EQ(memory.get<uint32_t>(k_frame + 4), 0U);

    memory.rom.clear();
    flush_tlb_all(cpu);
    ASSERT_TRUE(fill_tlb(cpu, k_test_linear, true));
    memory.code.insert(k_frame);
    flush_tlb_writes_to(cpu, k_frame);
    EXPECT_TRUE(cached(0, k_test_linear));
    EXPECT_FALSE(fill_tlb(cpu, k_test_linear, true));
    ASSERT_TRUE(memory_write(cpu, k_test_linear + 8, &value, 4));
    ASSERT_EQ(memory.code_writes.size(), 1U);
    EXPECT_EQ(memory.code_writes[0], (std::pair<uint64_t, size_t>(k_frame + 8, 4)));
    EXPECT_EQ(memory.get<uint32_t>(k_frame + 8), value);
}

TEST_F(MmuTest, TablesOutsideOfRamFaultAsReserved) {
    long_mode(0);
    memory.put<uint64_t>(k_pd_test, 0xFE000000 | 7);
    expect_page_fault(Access::Read, 9);
}

} // namespace
} // namespace coffer::tests
