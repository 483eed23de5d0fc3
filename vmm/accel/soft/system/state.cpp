// The CPU as a whole: its mode, reset and INIT, and conversion from and to the architectural state.
#include "vmm/accel/soft/system/mmu.hpp"
#include "vmm/accel/soft/system/msrs.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr uint32_t k_flat_limit = 0xFFFFFFFF;

bool flat_data(Segment const& segment) noexcept {
    uint16_t const a = segment.attributes;
    constexpr uint16_t kind =
        k_segment_present | k_segment_s | k_segment_code | k_segment_expand_down | k_segment_writable;
    constexpr uint16_t wanted = k_segment_present | k_segment_s | k_segment_writable;
    return segment.base == 0 && segment.limit == k_flat_limit && (a & kind) == wanted;
}

bool flat_code(Segment const& segment) noexcept {
    constexpr uint16_t kind = k_segment_present | k_segment_code | k_segment_readable;
    return segment.base == 0 && segment.limit == k_flat_limit && (segment.attributes & kind) == kind;
}

void load_architectural(Cpu& cpu, CpuState const& state) noexcept {
    cpu.gpr = state.gpr;
    cpu.rip = state.rip;
    cpu.rflags = (state.rflags & k_flags_mask) | k_fixed_flag;
    cpu.segments = state.segments;
    cpu.thread_bases = {state.segment(SegmentName::Fs).base, state.segment(SegmentName::Gs).base};
    cpu.ldtr = state.ldtr;
    cpu.tr = state.tr;
    cpu.gdtr = state.gdtr;
    cpu.idtr = state.idtr;
    cpu.cr0 = state.cr0;
    cpu.cr2 = state.cr2;
    cpu.cr3 = state.cr3;
    cpu.cr4 = state.cr4;
    cpu.efer = state.efer;
    cpu.xcr0 = state.xcr0;
    cpu.debug = {.address = state.dr, .dr6 = state.dr6, .dr7 = state.dr7};
    cpu.interrupt_shadow = state.interrupt_shadow;
    cpu.nmi_blocked = state.nmi_blocked;
    cpu.fault = {};
}

void finish_load(Cpu& cpu) noexcept {
    update_mode(cpu);
    flush_tlb_all(cpu);
}

Result<void> check_state(CpuState const& state) {
    auto refuse = [](char const* what, uint64_t value) {
        return make_error(ErrorCode::Unsupported, "CPU state has {} {:#x}, which the software CPU does not offer", what,
                          value);
    };
    if ((state.cr0 >> 32) || ((state.cr0 & k_cr0_pg) && !(state.cr0 & k_cr0_pe))) return refuse("CR0", state.cr0);
    if (state.cr4 & ~k_cr4_writable) return refuse("CR4", state.cr4);
    if (state.efer & ~(k_efer_writable | k_efer_lma)) return refuse("EFER", state.efer);
    bool const long_mode = state.efer & k_efer_lma;
    bool const consistent = long_mode == ((state.cr0 & k_cr0_pg) && (state.efer & k_efer_lme));
    if (!consistent || (long_mode && !(state.cr4 & k_cr4_pae))) return refuse("EFER", state.efer);
    if (state.rflags & k_vm) return refuse("virtual-8086 mode, RFLAGS", state.rflags);
    if (state.xcr0 != 1) return refuse("XCR0", state.xcr0);
    if ((state.dr6 | state.dr7) >> 32) return refuse("DR6 or DR7", state.dr6 | state.dr7);
    if (state.cr8 > 15) return refuse("CR8", state.cr8);
    return {};
}

} // namespace

void update_mode(Cpu& cpu) noexcept {
    Segment const& cs = cpu.segment(SegmentName::Cs);
    Segment const& ss = cpu.segment(SegmentName::Ss);
    Mode mode;
    mode.protected_mode = cpu.cr0 & k_cr0_pe;
    mode.long_mode = cpu.efer & k_efer_lma;
    mode.cpl = mode.protected_mode ? static_cast<uint8_t>(segment_dpl(ss.attributes)) : uint8_t{0};
    if (mode.long_mode && (cs.attributes & k_segment_long)) {
        mode.code_bits = mode.stack_bits = 64;
        mode.flat = true;
    } else {
        mode.code_bits = (cs.attributes & k_segment_db) ? 32 : 16;
        mode.stack_bits = (ss.attributes & k_segment_db) ? 32 : 16;
        mode.flat = mode.protected_mode && flat_code(cs) && flat_data(ss) && flat_data(cpu.segment(SegmentName::Ds)) &&
                    flat_data(cpu.segment(SegmentName::Es));
    }
    cpu.mode = mode;
    cpu.tlb_active = &cpu.tlb[mode.cpl == 3 ? 1 : 0];
    bool const guarded = mode.cpl != 3 && (cpu.cr4 & k_cr4_smap) && !(cpu.rflags & k_ac);
    if (guarded && cpu.tlb_book.user_in_supervisor_count != 0) drop_user_pages_from_supervisor_set(cpu);
}

void reset_cpu(Cpu& cpu) noexcept {
    CpuState state = reset_cpu_state();
    load_architectural(cpu, state);
    cpu.reg(Gpr::Rdx) = cpuid(cpu, 1, 0).eax;
    cpu.fxsave = state.fxsave;
    cpu.star = cpu.lstar = cpu.cstar = cpu.sfmask = cpu.kernel_gs_base = 0;
    cpu.sysenter_cs = cpu.sysenter_esp = cpu.sysenter_eip = 0;
    cpu.pat = 0x0007040600070406;
    cpu.tsc_aux = cpu.tsc_adjust = cpu.spec_ctrl = cpu.mtrr_def_type = 0;
    cpu.misc_enable = 1;
    cpu.mtrr_fixed = {};
    cpu.mtrr_variable = {};
    cpu.tsc_offset = 0;
    cpu.tsc_offset = uint64_t{0} - guest_tsc(cpu);
    finish_load(cpu);
}

// SDM vol. 3, table 10-1, column INIT: CR0.CD and NW, FPU, MTRRs, TSC and the MSRs stay.
void init_cpu(Cpu& cpu) noexcept {
    CpuState state = reset_cpu_state();
    constexpr uint64_t kept = k_cr0_cd | k_cr0_nw;
    state.cr0 = (state.cr0 & ~kept) | (cpu.cr0 & kept);
    load_architectural(cpu, state);
    cpu.reg(Gpr::Rdx) = cpuid(cpu, 1, 0).eax;
    finish_load(cpu);
}

CpuState save_cpu(Cpu const& cpu) {
    CpuState state;
    state.gpr = cpu.gpr;
    state.rip = cpu.rip;
    state.rflags = cpu.rflags;
    state.segments = cpu.segments;
    state.ldtr = cpu.ldtr;
    state.tr = cpu.tr;
    state.gdtr = cpu.gdtr;
    state.idtr = cpu.idtr;
    state.cr0 = cpu.cr0;
    state.cr2 = cpu.cr2;
    state.cr3 = cpu.cr3;
    state.cr4 = cpu.cr4;
    state.cr8 = cpu.interrupts ? cpu.interrupts->read_cr8() : 0;
    state.efer = cpu.efer;
    state.xcr0 = cpu.xcr0;
    state.dr = cpu.debug.address;
    state.dr6 = cpu.debug.dr6;
    state.dr7 = cpu.debug.dr7;
    state.fxsave = cpu.fxsave;
    state.msrs = save_msrs(cpu);
    state.interrupt_shadow = cpu.interrupt_shadow;
    state.nmi_blocked = cpu.nmi_blocked;
    return state;
}

Result<void> load_cpu(Cpu& cpu, CpuState const& state) {
    TRY(check_state(state));
    load_architectural(cpu, state);
    cpu.fxsave = state.fxsave;
    if (cpu.interrupts) cpu.interrupts->write_cr8(static_cast<uint8_t>(state.cr8));
    finish_load(cpu);
    for (MsrValue const& msr : state.msrs) {
        if (!load_msr(cpu, msr.index, msr.value)) {
            return make_error(ErrorCode::Unsupported,
                              "CPU state has MSR {:#x} = {:#x}, which the software CPU does not offer", msr.index,
                              msr.value);
        }
    }
    return {};
}

} // namespace coffer::vmm::soft
