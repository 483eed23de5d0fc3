// A software CPU without a translator: RAM from 0, a descriptor table for every kind of segment, page tables that tests
// change by hand, and one instruction at a time, decoded by Zydis.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include <Zydis/Zydis.h>
#include <gtest/gtest.h>

#include "base/log.hpp"
#include "vmm/accel/soft/system/architecture.hpp"

namespace coffer::tests {

using namespace coffer::vmm;
using namespace coffer::vmm::soft;

// How often translation_changed() was called; the code cache stands behind it in the program.
struct TranslationChanges {
    unsigned all = 0;
    unsigned non_global = 0;
    unsigned pages = 0;
};
TranslationChanges& translation_changes() noexcept;

constexpr size_t k_ram_size = 4 << 20;

class TestMemory final : public PhysicalMemory {
public:
    TestMemory() : m_ram(static_cast<std::byte*>(std::aligned_alloc(k_page_size, k_ram_size)), &std::free) {
        std::memset(m_ram.get(), 0, k_ram_size);
    }
    std::byte* host_page(uint64_t gpa_page, bool& writable) const noexcept override {
        if (gpa_page >= k_ram_size || holes.contains(gpa_page)) return nullptr;
        writable = !rom.contains(gpa_page);
        return m_ram.get() + gpa_page;
    }
    bool has_code(uint64_t gpa_page) const noexcept override { return code.contains(gpa_page); }
    void code_written(uint64_t gpa, size_t size) noexcept override { code_writes.emplace_back(gpa, size); }
    void note_store(uint64_t gpa_page) noexcept override {
        if (logging) stores.insert(gpa_page);
    }
    bool store_noted(uint64_t gpa_page) const noexcept override { return !logging || stores.contains(gpa_page); }

    template <class T = uint64_t>
    T get(uint64_t gpa) const {
        T value;
        std::memcpy(&value, m_ram.get() + gpa, sizeof value);
        return value;
    }
    template <class T>
    void put(uint64_t gpa, T value) {
        std::memcpy(m_ram.get() + gpa, &value, sizeof value);
    }
    std::byte* at(uint64_t gpa) { return m_ram.get() + gpa; }

    std::set<uint64_t> rom, holes, code, stores;
    bool logging = false;
    std::vector<std::pair<uint64_t, size_t>> code_writes;

private:
    std::unique_ptr<std::byte, decltype(&std::free)> m_ram;
};

// Reads give the low bytes of `answer`; everything is recorded.
class RecordingIo final : public GuestIo {
public:
    struct Access {
        bool write;
        bool port;
        uint64_t address;
        size_t size;
        uint64_t value;
        bool operator==(Access const&) const = default;
    };
    void pio_read(uint16_t port, MutBytes to) noexcept override { read(true, port, to); }
    void pio_write(uint16_t port, Bytes from) noexcept override { write(true, port, from); }
    void mmio_read(GuestPhysAddr from, MutBytes to) noexcept override { read(false, from.value(), to); }
    void mmio_write(GuestPhysAddr to, Bytes from) noexcept override { write(false, to.value(), from); }

    std::vector<Access> log;
    uint64_t answer = 0x1122334455667788;

private:
    void read(bool port, uint64_t address, MutBytes to) {
        std::memcpy(to.data(), &answer, to.size());
        log.push_back({false, port, address, to.size(), load_le_sized(to)});
    }
    void write(bool port, uint64_t address, Bytes from) {
        log.push_back({true, port, address, from.size(), load_le_sized(from)});
    }
};

class TestInterrupts final : public devices::CpuInterrupts {
public:
    bool has_pending() const noexcept override { return false; }
    std::optional<uint8_t> acknowledge() noexcept override { return std::nullopt; }
    uint8_t read_cr8() const noexcept override { return cr8; }
    void write_cr8(uint8_t value) noexcept override { cr8 = value; }
    uint64_t read_apic_base() const noexcept override { return base; }
    bool write_apic_base(uint64_t value) noexcept override {
        if (value & 0xFF) return false;
        base = value;
        return true;
    }
    uint64_t read_tsc_deadline() const noexcept override { return deadline; }
    void write_tsc_deadline(uint64_t value) noexcept override { deadline = value; }
    bool read_x2apic(uint32_t msr, uint64_t& value) noexcept override {
        value = msr;
        return msr == 0x802;
    }
    bool write_x2apic(uint32_t msr, uint64_t) noexcept override { return msr == 0x80B; }

    uint8_t cr8 = 0;
    uint64_t base = 0xFEE00900, deadline = 0;
};

// Selectors of the table at k_gdt.
constexpr uint16_t k_code32 = 0x08, k_data = 0x10, k_code64 = 0x18, k_user_code32 = 0x23, k_user_data = 0x2B;
constexpr uint16_t k_user_code64 = 0x33, k_tss = 0x38, k_code16 = 0x48, k_small_data = 0x50, k_conforming = 0x58;
constexpr uint16_t k_absent = 0x60, k_read_only = 0x68, k_gate = 0x70, k_expand_down = 0x80, k_ldt = 0x88;
constexpr uint16_t k_data16 = 0x98;
constexpr uint64_t k_gdt = 0x1000, k_task = 0x2000, k_idt = 0x3000, k_tables = 0x10000;
constexpr uint64_t k_ring0_stack = 0x9000, k_ist_stack = 0xA000;
// Four levels: PML4, PDPT, PD (2 MiB identity), and a page table for linear 0x40000000-0x401FFFFF.
constexpr uint64_t k_pml4 = k_tables, k_pdpt = k_tables + 0x1000, k_pd = k_tables + 0x2000,
                   k_pd_test = k_tables + 0x3000;
constexpr uint64_t k_pt = k_tables + 0x4000;
constexpr uint64_t k_test_linear = 0x4000'0000;

class SoftCpuTest : public ::testing::Test {
protected:
    SoftCpuTest() : m_cpu(std::make_unique<Cpu>()), cpu(*m_cpu) {
        cpu.memory = &memory;
        cpu.io = &io;
        cpu.interrupts = &interrupts;
        cpu.tsc_hz = 2'500'000'000;
        reset_cpu(cpu);
        fill_tables();
        translation_changes() = {};
    }

    // Executes the bytes as the instruction at the present RIP.
    Step run(std::vector<uint8_t> const& bytes) {
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
        bool const ok =
            ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, bytes.data(), bytes.size(), &decoded, operands.data()));
        EXPECT_TRUE(ok) << "undecodable test instruction";
        EXPECT_EQ(decoded.length, bytes.size());
        Insn insn{&decoded, operands.data(), {}};
        std::copy(bytes.begin(), bytes.end(), insn.bytes.begin());
        length = decoded.length;
        return execute_system(cpu, insn);
    }

    void expect_fault(Step step, Vector vector, uint32_t error) {
        ASSERT_EQ(step, Step::Fault);
        EXPECT_EQ(cpu.fault.vector, vector);
        EXPECT_TRUE(cpu.fault.has_error);
        EXPECT_EQ(cpu.fault.error, error);
    }
    void expect_fault(Step step, Vector vector) {
        ASSERT_EQ(step, Step::Fault);
        EXPECT_EQ(cpu.fault.vector, vector);
        EXPECT_FALSE(cpu.fault.has_error);
    }

    Segment from_gdt(uint16_t selector) {
        uint64_t const low = memory.get(k_gdt + (selector & 0xFFF8));
        uint32_t limit = static_cast<uint32_t>((low & 0xFFFF) | ((low >> 32) & 0xF0000));
        if (low & bit(55)) limit = limit << 12 | 0xFFF;
        return {.selector = selector,
                .attributes = static_cast<uint16_t>((low >> 40) & 0xF0FF),
                .limit = limit,
                .base = ((low >> 16) & 0xFFFFFF) | ((low >> 32) & 0xFF000000)};
    }
    void use_tables() {
        cpu.gdtr = {.base = k_gdt, .limit = 0xFFF};
        cpu.idtr = {.base = k_idt, .limit = 0xFFF};
        cpu.tr = {.selector = k_tss, .attributes = 0x8B, .limit = 0x67, .base = k_task};
    }
    void load(uint16_t code, uint16_t data) {
        cpu.segment(SegmentName::Cs) = from_gdt(code);
        for (auto name : {SegmentName::Ss, SegmentName::Ds, SegmentName::Es}) cpu.segment(name) = from_gdt(data);
        update_mode(cpu);
        flush_tlb_all(cpu);
        cpu.reg(Gpr::Rsp) = 0x8000;
        cpu.rip = 0x5000;
    }
    void protected32(unsigned cpl = 0) {
        use_tables();
        cpu.cr0 = k_cr0_pe | k_cr0_et | k_cr0_ne;
        load(cpl == 0 ? k_code32 : k_user_code32, cpl == 0 ? k_data : k_user_data);
    }
    void long_mode(unsigned cpl = 0) {
        use_tables();
        cpu.cr0 = k_cr0_pe | k_cr0_et | k_cr0_ne | k_cr0_wp | k_cr0_pg;
        cpu.cr4 = k_cr4_pae | k_cr4_pge;
        cpu.efer = k_efer_lme | k_efer_lma | k_efer_nxe | k_efer_sce;
        cpu.cr3 = k_pml4;
        memory.put<uint64_t>(k_task + 4, k_ring0_stack);
        load(cpl == 0 ? k_code64 : k_user_code64, cpl == 0 ? k_data : k_user_data);
    }
    // Maps the page at k_test_linear + index * 4096.
    void map(unsigned index, uint64_t entry) {
        memory.put<uint64_t>(k_pt + index * 8, entry);
        flush_tlb_all(cpu);
    }

    void idt32(uint8_t vector, uint16_t selector, uint32_t offset, uint16_t type_and_dpl) {
        memory.put<uint64_t>(k_idt + vector * 8, (offset & 0xFFFF) | uint64_t{selector} << 16 |
                                                     uint64_t{type_and_dpl} << 40 |
                                                     uint64_t{offset & 0xFFFF0000} << 32);
    }
    void idt64(uint8_t vector, uint16_t selector, uint64_t offset, uint16_t type_and_dpl, unsigned ist = 0) {
        memory.put<uint64_t>(k_idt + vector * 16, (offset & 0xFFFF) | uint64_t{selector} << 16 | uint64_t{ist} << 32 |
                                                      uint64_t{type_and_dpl} << 40 | (offset & 0xFFFF0000) << 32);
        memory.put<uint64_t>(k_idt + vector * 16 + 8, offset >> 32);
    }

    TestMemory memory;
    RecordingIo io;
    TestInterrupts interrupts;
    std::unique_ptr<Cpu> m_cpu;
    Cpu& cpu;
    size_t length = 0;

    void fill_tables() {
        auto put = [&](uint16_t selector, uint64_t value) { memory.put<uint64_t>(k_gdt + (selector & 0xFFF8), value); };
        put(k_code32, 0x00CF9B000000FFFF);
        put(k_data, 0x00CF93000000FFFF);
        put(k_code64, 0x00AF9B000000FFFF);
        put(k_user_code32, 0x00CFFB000000FFFF);
        put(k_user_data, 0x00CFF3000000FFFF);
        put(k_user_code64, 0x00AFFB000000FFFF);
        put(k_tss, 0x0000890000000067 | k_task << 16);
        put(k_tss + 8, 0);
        put(k_code16, 0x00009B000000FFFF);
        put(k_small_data, 0x0040930080000FFF); // base 0x8000, limit 0xFFF
        put(k_conforming, 0x00CF9F000000FFFF);
        put(k_absent, 0x00CF13000000FFFF);
        put(k_read_only, 0x00CF91000000FFFF);
        put(k_expand_down, 0x00C097000000'0003); // limit 0x3FFF, offsets above it
        put(k_ldt, 0x0000820060000017);          // base 0x6000, three entries
        put(k_ldt + 8, 0);
        put(k_data16, 0x000093000000FFFF);
        // 32-bit task state: SS0:ESP0; 64-bit: RSP0 and IST1.
        memory.put<uint64_t>(k_task + 4, k_ring0_stack | uint64_t{k_data} << 32);
        memory.put<uint64_t>(k_task + 0x24, k_ist_stack);
        memory.put<uint16_t>(k_task + 102, 0x68);

        memory.put<uint64_t>(k_pml4, k_pdpt | 7);
        memory.put<uint64_t>(k_pdpt, k_pd | 7);
        memory.put<uint64_t>(k_pdpt + 8, k_pd_test | 7);
        for (uint64_t i = 0; i < 8; ++i) memory.put<uint64_t>(k_pd + i * 8, i << 21 | 0x87);
        memory.put<uint64_t>(k_pd_test, k_pt | 7);
    }
};

} // namespace coffer::tests
