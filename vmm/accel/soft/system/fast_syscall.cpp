// SYSCALL, SYSRET, SYSENTER, SYSEXIT (Intel SDM vol. 3, 5.8.7, 5.8.8), SWAPGS and the FSGSBASE instructions.
//
// As Intel has it, which the CPUID policy says: SYSCALL exists in 64-bit mode alone, SYSENTER in every protected mode.
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/transfer.hpp"

namespace coffer::vmm::soft {

namespace {

// Flat segments that need no descriptor.
Segment flat_code(uint16_t selector, unsigned cpl, bool wide) noexcept {
    auto attributes = static_cast<uint16_t>(0x809B | cpl << 5 | (wide ? k_segment_long : k_segment_db));
    return {
        .selector = static_cast<uint16_t>((selector & 0xFFFC) | cpl), .attributes = attributes, .limit = 0xFFFFFFFF};
}

Segment flat_stack(uint16_t selector, unsigned cpl) noexcept {
    return {.selector = static_cast<uint16_t>((selector & 0xFFFC) | cpl),
            .attributes = static_cast<uint16_t>(0xC093 | cpl << 5),
            .limit = 0xFFFFFFFF};
}

void enter_flat(Cpu& cpu, uint16_t code, uint16_t stack, unsigned cpl, bool wide, uint64_t rip) noexcept {
    set_segment(cpu, SegmentName::Cs, flat_code(code, cpl, wide));
    set_segment(cpu, SegmentName::Ss, flat_stack(stack, cpl));
    cpu.rip = rip;
    update_mode(cpu);
}

} // namespace

Step syscall(Cpu& cpu, Insn const& insn) noexcept {
    if (cpu.mode.code_bits != 64 || !(cpu.efer & k_efer_sce)) return fault(cpu, Vector::UD);
    cpu.reg(Gpr::Rcx) = next_rip(cpu, insn);
    cpu.reg(Gpr::R11) = cpu.rflags & ~k_rf;
    cpu.rflags = (cpu.rflags & ~cpu.sfmask & ~k_rf) | k_fixed_flag;
    auto const selector = static_cast<uint16_t>((cpu.star >> 32) & 0xFFFC);
    enter_flat(cpu, selector, static_cast<uint16_t>(selector + 8), 0, true, cpu.lstar);
    return Step::Leave;
}

Step sysret(Cpu& cpu, Insn const& insn) noexcept {
    if (cpu.mode.code_bits != 64 || !(cpu.efer & k_efer_sce)) return fault(cpu, Vector::UD);
    if (!require_cpl0(cpu)) return Step::Fault;
    bool const wide = insn.decoded->raw.rex.W;
    uint64_t const target = wide ? cpu.reg(Gpr::Rcx) : cpu.reg(Gpr::Rcx) & 0xFFFFFFFF;
    if (!is_canonical(target)) return fault(cpu, Vector::GP, 0);
    constexpr uint64_t mask = k_flags_mask & ~(k_rf | k_vm);
    cpu.rflags = (cpu.reg(Gpr::R11) & mask) | k_fixed_flag;
    auto const selector = static_cast<uint16_t>(cpu.star >> 48);
    enter_flat(cpu, static_cast<uint16_t>(selector + (wide ? 16 : 0)), static_cast<uint16_t>(selector + 8), 3, wide,
               target);
    return Step::Leave;
}

Step sysenter(Cpu& cpu, Insn const&) noexcept {
    auto const selector = static_cast<uint16_t>(cpu.sysenter_cs & 0xFFFC);
    if (!cpu.mode.protected_mode || selector == 0) return fault(cpu, Vector::GP, 0);
    bool const wide = cpu.mode.long_mode;
    cpu.rflags &= ~(k_if | k_vm);
    cpu.reg(Gpr::Rsp) = wide ? cpu.sysenter_esp : cpu.sysenter_esp & 0xFFFFFFFF;
    enter_flat(cpu, selector, static_cast<uint16_t>(selector + 8), 0, wide,
               wide ? cpu.sysenter_eip : cpu.sysenter_eip & 0xFFFFFFFF);
    return Step::Leave;
}

Step sysexit(Cpu& cpu, Insn const& insn) noexcept {
    auto const selector = static_cast<uint16_t>(cpu.sysenter_cs & 0xFFFC);
    if (!cpu.mode.protected_mode || selector == 0 || cpu.mode.cpl != 0) return fault(cpu, Vector::GP, 0);
    bool const wide = insn.decoded->raw.rex.W;
    uint64_t target = cpu.reg(Gpr::Rdx), pointer = cpu.reg(Gpr::Rcx);
    if (wide && (!is_canonical(target) || !is_canonical(pointer))) return fault(cpu, Vector::GP, 0);
    if (!wide) target &= 0xFFFFFFFF, pointer &= 0xFFFFFFFF;
    cpu.reg(Gpr::Rsp) = pointer;
    enter_flat(cpu, static_cast<uint16_t>(selector + (wide ? 32 : 16)),
               static_cast<uint16_t>(selector + (wide ? 40 : 24)), 3, wide, target);
    return Step::Leave;
}

Step swapgs(Cpu& cpu, Insn const& insn) noexcept {
    if (cpu.mode.code_bits != 64) return fault(cpu, Vector::UD);
    if (!require_cpl0(cpu)) return Step::Fault;
    uint64_t const base = cpu.kernel_gs_base;
    cpu.kernel_gs_base = cpu.segment(SegmentName::Gs).base;
    cpu.segment(SegmentName::Gs).base = cpu.thread_bases[1] = base;
    return done(cpu, insn);
}

Step thread_base(Cpu& cpu, Insn const& insn) noexcept {
    if (cpu.mode.code_bits != 64 || !(cpu.cr4 & k_cr4_fsgsbase)) return fault(cpu, Vector::UD);
    auto const which = mnemonic(insn);
    bool const fs = which == ZYDIS_MNEMONIC_RDFSBASE || which == ZYDIS_MNEMONIC_WRFSBASE;
    bool const write = which == ZYDIS_MNEMONIC_WRFSBASE || which == ZYDIS_MNEMONIC_WRGSBASE;
    Segment& segment = cpu.segment(fs ? SegmentName::Fs : SegmentName::Gs);
    ZydisRegister const reg = operand(insn, 0).reg.value;
    if (!write) {
        write_register(cpu, reg, segment.base);
        return done(cpu, insn);
    }
    uint64_t const base = read_register(cpu, reg);
    if (!is_canonical(base)) return fault(cpu, Vector::GP, 0);
    segment.base = cpu.thread_bases[fs ? 0 : 1] = base;
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
