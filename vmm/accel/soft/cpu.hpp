// The software CPU's run-time state and the seams between its two halves:
//
//   translate/  (decode, allow-list, re-encoder, verifier, code cache, dispatcher): runs plain instructions natively
//   system/     (page walk, segments, exceptions, privileged and string instructions, CPUID, MSRs): everything else
//
// Both work on one Cpu, owned by one vCPU thread; only the members marked atomic are touched by others. Emitted code
// addresses Cpu relative to a host register, so the hot members come first and offsets are checked by static_assert
// where code is emitted.
//
// FP state (x87, MMX, SSE): while emitted code runs it lives in the host's registers. The trampoline behind a *slow*
// call (execute_system, memory_read/write, deliver_*) saves it to Cpu::fxsave before and restores it after, so that
// code in system/ may use the C library freely and finds the guest's FP state in Cpu::fxsave. fill_tlb() alone is
// called with live FP registers: its file is compiled for general registers only and calls nothing outside of it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/bytes.hpp"
#include "devices/core/irq.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/cpu_state.hpp"

struct ZydisDecodedInstruction_;
struct ZydisDecodedOperand_;

namespace coffer::vmm::soft {

constexpr uint64_t k_page_size = 4096;
constexpr uint64_t k_page_mask = ~(k_page_size - 1);

// ---- Address translation -------------------------------------------------------------------------------------------

enum class Access : uint8_t { Read, Write, Execute };

// One direct-mapped entry. A lookup of `linear` matches where (linear ^ tag) <= 4096 - size: one compare catches a
// miss and a page split. An invalid tag differs from every linear address that indexes this entry: it is
// k_invalid_tag, whose index bits are set so that it matches only the entry it can never be stored in (see
// invalid_tag()). The write tag is valid only for pages that stores may reach directly: dirty in the page tables, RAM,
// without translated code, and noted where stores are logged. Pages that are not RAM never get an entry.
struct TlbEntry {
    uint64_t read_tag;
    uint64_t write_tag;
    uint64_t host;   // address of the host page
    uint64_t flags;  // k_tlb_*
};
constexpr size_t k_tlb_entries = 1024;
constexpr uint64_t k_tlb_global = 1;
constexpr uint64_t k_tlb_listed = 2;  // stands in TlbBook::non_global
constexpr uint64_t k_tlb_user = 4;
constexpr uint64_t k_tlb_large = 8;   // piece of a 2 MiB page
constexpr uint64_t k_tlb_huge = 16;   // piece of a 4 MiB or 1 GiB page

// Non-canonical, and differing in the index bits from every address that looks up entry `index`.
constexpr uint64_t invalid_tag(size_t index) noexcept {
    return 0x8000'0000'0000'0000ULL | (~static_cast<uint64_t>(index) & (k_tlb_entries - 1)) << 12;
}
constexpr size_t tlb_index(uint64_t linear) noexcept { return (linear >> 12) & (k_tlb_entries - 1); }

// Which of the two sets an access uses: 0 for CPL 0-2 (implicit supervisor accesses too), 1 for CPL 3. Supervisor
// accesses under SMAP with AC clear do not use user pages' entries: set 0 never caches a user page while CR4.SMAP is
// set and EFLAGS.AC is clear, and STAC/CLAC/POPF that change AC flush set 0's user pages.
struct TlbSet {
    std::array<TlbEntry, k_tlb_entries> entries;
};

constexpr size_t large_region_hash(uint64_t linear) noexcept { return (linear >> 21 ^ linear >> 31) & 1023; }

// What system/ remembers about the cached entries, so that the flushes that kernels do often stay cheap: CR3 loads clear
// the listed non-global entries, CLAC under SMAP the listed user pages of set 0, and INVLPG looks for the other pieces
// of a large page only where one of its region was cached.
struct TlbBook {
    std::array<std::array<uint16_t, k_tlb_entries>, 2> non_global{};
    std::array<uint32_t, 2> non_global_count{};
    std::array<uint16_t, 64> user_in_supervisor{};
    uint32_t user_in_supervisor_count = 0;      // above the array's size: look at all entries
    std::array<uint64_t, 16> large_regions{};   // a bit for each hash of linear >> 21
    bool huge_pages = false;                    // pages of 4 MiB or 1 GiB are cached
};

// ---- Faults --------------------------------------------------------------------------------------------------------

enum class Vector : uint8_t {
    DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12, GP = 13,
    PF = 14, MF = 16, AC = 17, MC = 18, XM = 19,
};

struct Fault {
    Vector vector = Vector::UD;
    bool has_error = false;
    bool software = false;   // INT n, INT3, INTO: DPL of the gate is checked, RIP is behind the instruction
    bool external = false;   // a hardware interrupt: error codes it causes have EXT set
    uint32_t error = 0;
    uint64_t cr2 = 0;        // PF alone
};

// What became of one instruction or of a delivery.
enum class Step : uint8_t {
    Next,         // done; Cpu::rip is behind it, and nothing that the translation of the block relies on has changed
    Leave,        // done; Cpu::rip, the mode, a segment, paging or the interrupt flag may have changed: dispatch anew
    Fault,        // Cpu::fault says which; no other state has changed, Cpu::rip is at the instruction
    Halt,         // HLT: Cpu::rip is behind it
    Shutdown,     // triple fault
};

// ---- Physical memory -----------------------------------------------------------------------------------------------

// Host memory behind guest-physical pages, and which pages hold translated code. Reads from any thread; changes are
// made by the vCPU thread or with it stopped.
class PhysicalMemory {
public:
    virtual ~PhysicalMemory() = default;
    // The host page behind a guest page (RAM or ROM), or null (MMIO). `writable` is false for ROM.
    virtual std::byte* host_page(uint64_t gpa_page, bool& writable) const noexcept = 0;
    // Whether translated code was made from this page: stores to it must call code_written().
    virtual bool has_code(uint64_t gpa_page) const noexcept = 0;
    virtual void code_written(uint64_t gpa, size_t size) noexcept = 0;
    // A log of stores: the CPU stores to the page about now, or is about to cache that it may (TlbEntry::write_tag).
    // Whoever reads the log has all vCPUs drop_write_tags() after that and before looking at what was stored.
    virtual void note_store(uint64_t gpa_page) noexcept = 0;
    // Whether stores to the page need no note (now): it has one, or there is no log.
    virtual bool store_noted(uint64_t gpa_page) const noexcept = 0;
};

// ---- The CPU -------------------------------------------------------------------------------------------------------

struct DebugRegisters {
    std::array<uint64_t, 4> address{};
    uint64_t dr6 = 0xFFFF0FF0;
    uint64_t dr7 = 0x400;
};

// What an execution mode is to the translator: part of a block's key. Recomputed by update_mode() after every change
// of CR0, CR4, EFER, CS, SS, DS, ES or RFLAGS.VM.
struct Mode {
    uint8_t code_bits = 16;      // 16, 32 or 64: CS.L and CS.D
    uint8_t stack_bits = 16;     // 16, 32 or 64: SS.B
    uint8_t cpl = 0;
    bool flat = false;           // CS, DS, ES, SS have base 0 and limit 4 GiB, and are usable (always so at 64 bits)
    bool protected_mode = false; // CR0.PE and not virtual-8086
    bool virtual_8086 = false;
    bool long_mode = false;      // EFER.LMA
    constexpr bool operator==(Mode const&) const = default;
};

struct alignas(64) Cpu {
    // -- hot: emitted code knows these --
    std::array<uint64_t, 16> gpr{};       // Gpr's order
    uint64_t rip = 0xFFF0;                // in 64-bit mode linear; else the offset in CS
    uint64_t rflags = 2;                  // whole and exact whenever C++ runs; bit 1 set
    TlbSet* tlb_active = nullptr;         // the set of the current CPL
    std::array<uint64_t, 2> thread_bases{};  // FS and GS base, copies of the segments' below
    std::atomic<uint32_t> attention{0};   // non-zero: leave emitted code soon (k_attention_*)
    uint32_t reserved = 0;
    alignas(64) std::array<uint8_t, 512> fxsave{};
    alignas(64) std::array<TlbSet, 2> tlb{};
    TlbBook tlb_book{};

    // -- architectural, for C++ --
    std::array<Segment, 6> segments{};
    Segment ldtr{}, tr{};
    DescriptorTable gdtr{}, idtr{};
    uint64_t cr0 = 0x60000010, cr2 = 0, cr3 = 0, cr4 = 0, efer = 0, xcr0 = 1;
    DebugRegisters debug{};
    Mode mode{};
    bool interrupt_shadow = false;        // set by STI, MOV SS, POP SS; cleared after the next instruction
    bool nmi_blocked = false;
    Fault fault{};

    // -- MSRs without a home above --
    uint64_t star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
    uint64_t sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
    uint64_t pat = 0x0007040600070406;
    uint64_t tsc_aux = 0, tsc_offset = 0, tsc_adjust = 0, misc_enable = 1, spec_ctrl = 0;
    uint64_t mtrr_def_type = 0;
    std::array<uint64_t, 11> mtrr_fixed{};
    std::array<uint64_t, 16> mtrr_variable{};

    // -- surroundings, set once --
    unsigned index = 0;                   // vCPU number = APIC id
    PhysicalMemory* memory = nullptr;
    GuestIo* io = nullptr;
    devices::CpuInterrupts* interrupts = nullptr;
    uint64_t tsc_hz = 0;
    void* translator = nullptr;           // translate/'s own; null in tests of system/ alone

    // -- counters --
    uint64_t tlb_fills = 0;
    uint64_t system_instructions = 0;
    uint64_t mmio_accesses = 0;
    uint64_t pio_accesses = 0;

    Segment& segment(SegmentName name) { return segments[static_cast<size_t>(name)]; }
    Segment const& segment(SegmentName name) const { return segments[static_cast<size_t>(name)]; }
    uint64_t& reg(Gpr name) { return gpr[static_cast<size_t>(name)]; }
    uint64_t reg(Gpr name) const { return gpr[static_cast<size_t>(name)]; }
};

// Bits of Cpu::attention, set by other threads (but for Smc), cleared by the dispatcher.
constexpr uint32_t k_attention_interrupt = 1;  // the local APIC may have an interrupt: look when RFLAGS.IF is set
constexpr uint32_t k_attention_kick = 2;
constexpr uint32_t k_attention_nmi = 4;
constexpr uint32_t k_attention_init = 8;
constexpr uint32_t k_attention_startup = 16;
constexpr uint32_t k_attention_stale_code = 32;  // code under the running block changed

// ---- system/: what the translator calls ------------------------------------------------------------------------------

// A decoded instruction as Zydis gives it, with its hidden operands; lives as long as the block it belongs to.
struct Insn {
    ZydisDecodedInstruction_ const* decoded;
    ZydisDecodedOperand_ const* operands;  // decoded->operand_count of them
    std::array<uint8_t, 15> bytes;
};

// Executes one instruction that is not plain: system, string, far and mode-changing control flow, segment loads,
// stack operations in 16-bit and segmented code, I/O, CPUID, MSRs, FXSAVE/XSAVE. Where it does not know the
// instruction: #UD, logged once a mnemonic. Slow call.
Step execute_system(Cpu& cpu, Insn const& insn) noexcept;

// Delivers Cpu::fault, or a hardware interrupt, through the IDT (or the real-mode IVT), with #DF and shutdown rules.
// Step::Leave or Step::Shutdown. Slow calls.
Step deliver_fault(Cpu& cpu) noexcept;
Step deliver_interrupt(Cpu& cpu, uint8_t vector) noexcept;
Step deliver_nmi(Cpu& cpu) noexcept;
// The trap behind an instruction that ran with RFLAGS.TF set at its start: DR6.BS and #DB; Cpu::rip is behind it.
Step deliver_single_step(Cpu& cpu) noexcept;

// Guest-linear accesses of 1 to 64 bytes with all checks of the current CPL: may cross pages, reach MMIO or a page
// with code. False: Cpu::fault says why, and nothing was written. Slow calls.
bool memory_read(Cpu& cpu, uint64_t linear, void* to, size_t size) noexcept;
bool memory_write(Cpu& cpu, uint64_t linear, void const* from, size_t size) noexcept;
// Whether a write of `size` bytes would succeed (for read-modify-write: checked before the read has effects).
bool memory_check_write(Cpu& cpu, uint64_t linear, size_t size) noexcept;

// The linear address of a segmented access (16- and 32-bit modes), with limit, type and presence checks.
bool segment_to_linear(Cpu& cpu, SegmentName segment, uint64_t offset, size_t size, Access access,
                       uint64_t& linear) noexcept;

// Tries to put the page of `linear` into the active TLB set. True: the entry now matches. False: the access must take
// the slow path (MMIO, code page on a write, fault). Raises nothing and changes no architectural state but A/D bits.
bool fill_tlb(Cpu& cpu, uint64_t linear, bool write) noexcept;

// Where to fetch instructions from: the guest-physical address of `linear` under execute permission; false: Cpu::fault.
struct FetchPage {
    uint64_t gpa = 0;
    bool global = false;  // CR3 loads keep the translation
    bool large = false;   // of more than 4 KiB
    bool huge = false;    // of more than 2 MiB
};
bool fetch_translate(Cpu& cpu, uint64_t linear, FetchPage& page) noexcept;

void flush_tlb_all(Cpu& cpu) noexcept;          // globals too
void flush_tlb_non_global(Cpu& cpu) noexcept;
void flush_tlb_page(Cpu& cpu, uint64_t linear) noexcept;
// Drops write permission of a page that now holds code (in both sets, every alias).
void flush_tlb_writes_to(Cpu& cpu, uint64_t gpa_page) noexcept;
// Drops all write permissions: the next store to each page is noted anew.
void drop_write_tags(Cpu& cpu) noexcept;

void update_mode(Cpu& cpu) noexcept;
void reset_cpu(Cpu& cpu) noexcept;  // reset vector; `INIT` is reset_cpu with memory types, FPU and TSC kept
void init_cpu(Cpu& cpu) noexcept;
CpuState save_cpu(Cpu const& cpu);
Result<void> load_cpu(Cpu& cpu, CpuState const& state);  // refuses what the CPUID policy does not offer

// Guest TSC now: the host's TSC with the offset.
uint64_t guest_tsc(Cpu const& cpu) noexcept;

struct CpuidResult {
    uint32_t eax, ebx, ecx, edx;
};
// The policy: x86-64-v2 with what the translator's allow-list holds, never what the host lacks.
CpuidResult cpuid(Cpu const& cpu, uint32_t leaf, uint32_t subleaf) noexcept;

// ---- translate/: what system/ calls ----------------------------------------------------------------------------------

// Links between blocks and cached targets that depend on address translation are stale (CR3, paging changes; INVLPG).
// Called by system/ from within the functions above; implemented by the code cache.
void translation_changed(Cpu& cpu, bool globals_too) noexcept;
void translation_changed_at(Cpu& cpu, uint64_t linear) noexcept;

}  // namespace coffer::vmm::soft
