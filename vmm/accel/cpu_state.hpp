// The architectural state of one x86-64 CPU, independent of the backend: what set_state takes, get_state gives and a
// snapshot saves. Sources: Intel SDM vol. 3 (order 325384) 2.2, 3.4, 10.1; AMD APM vol. 2 (24593).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace coffer::vmm {

enum class Gpr : uint8_t { Rax, Rcx, Rdx, Rbx, Rsp, Rbp, Rsi, Rdi, R8, R9, R10, R11, R12, R13, R14, R15 };
enum class SegmentName : uint8_t { Es, Cs, Ss, Ds, Fs, Gs };

// A segment register with its hidden part. `attributes` is bits 8-15 and 20-23 of the descriptor's second doubleword,
// shifted down by 8: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15. `limit` is in bytes, already scaled.
struct Segment {
    uint16_t selector = 0;
    uint16_t attributes = 0;
    uint32_t limit = 0;
    uint64_t base = 0;

    template <class V>
    void fields(V& v) {
        v.field(1, selector);
        v.field(2, attributes);
        v.field(3, limit);
        v.field(4, base);
    }
};

struct DescriptorTable {
    uint64_t base = 0;
    uint16_t limit = 0;

    template <class V>
    void fields(V& v) {
        v.field(1, base);
        v.field(2, limit);
    }
};

struct MsrValue {
    uint32_t index = 0;
    uint64_t value = 0;

    template <class V>
    void fields(V& v) {
        v.field(1, index);
        v.field(2, value);
    }
};

enum class CpuActivity : uint8_t { Running, Halted, WaitingForSipi };

// An event whose delivery had begun when the vCPU stopped, and that set_state delivers next. Software interrupts are not
// among them: RIP is still at the INT instruction.
struct PendingEvent {
    enum class Kind : uint8_t { None, Interrupt, Exception };
    Kind kind = Kind::None;
    uint8_t vector = 0;
    bool has_error_code = false;
    uint32_t error_code = 0;

    template <class V>
    void fields(V& v) {
        v.field(1, kind);
        v.field(2, vector);
        v.field(3, has_error_code);
        v.field(4, error_code);
    }
};

struct CpuState {
    std::array<uint64_t, 16> gpr{};  // in Gpr's order
    uint64_t rip = 0xFFF0;
    uint64_t rflags = 2;

    std::array<Segment, 6> segments{};  // in SegmentName's order
    Segment ldtr{};
    Segment tr{};
    DescriptorTable gdtr{};
    DescriptorTable idtr{};

    uint64_t cr0 = 0x60000010;
    uint64_t cr2 = 0;
    uint64_t cr3 = 0;
    uint64_t cr4 = 0;
    uint64_t cr8 = 0;
    uint64_t efer = 0;
    uint64_t xcr0 = 1;
    std::array<uint64_t, 4> dr{};
    uint64_t dr6 = 0xFFFF0FF0;
    uint64_t dr7 = 0x400;

    std::array<uint8_t, 512> fxsave{};  // legacy region of XSAVE (SDM vol. 1, table 10-2)
    std::vector<MsrValue> msrs;         // those the backend keeps and that are not above

    CpuActivity activity = CpuActivity::Running;
    bool interrupt_shadow = false;  // after STI or MOV SS
    bool nmi_blocked = false;
    bool nmi_pending = false;
    PendingEvent pending_event;

    // XSAVE area from byte 512 on, standard format: header, then AVX and later components. Empty: all initial.
    std::vector<std::byte> xsave_extended;
    // Registers of a local APIC that the backend holds: the first KiB of its page (SDM vol. 3, table 11-1). Else empty.
    std::vector<std::byte> local_apic;

    template <class V>
    void fields(V& v) {
        v.required(1, gpr);
        v.required(2, rip);
        v.required(3, rflags);
        v.required(4, segments);
        v.required(5, ldtr);
        v.required(6, tr);
        v.required(7, gdtr);
        v.required(8, idtr);
        v.required(9, cr0);
        v.required(10, cr2);
        v.required(11, cr3);
        v.required(12, cr4);
        v.required(13, cr8);
        v.required(14, efer);
        v.field(15, xcr0);
        v.field(16, dr);
        v.field(17, dr6);
        v.field(18, dr7);
        v.required(19, fxsave);
        v.field(20, msrs);
        v.field(21, activity);
        v.field(22, interrupt_shadow);
        v.field(23, nmi_blocked);
        v.field(24, nmi_pending);
        v.field(25, pending_event);
        v.field(26, xsave_extended);
        v.field(27, local_apic);
    }

    Segment& segment(SegmentName name) { return segments[static_cast<size_t>(name)]; }
    Segment const& segment(SegmentName name) const { return segments[static_cast<size_t>(name)]; }
};

// RESET# values (SDM vol. 3, table 10-1): CS F000 with base 0xFFFF0000, real mode, FPU as FNINIT leaves it,
// MXCSR 0x1F80. RDX holds the CPU signature, which the backend fills in.
CpuState reset_cpu_state();

}  // namespace coffer::vmm
