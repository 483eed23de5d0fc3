// Flags, HLT, time stamps, MSR and CPUID access as instructions, and instructions that do nothing here.
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/msrs.hpp"

namespace coffer::vmm::soft {

namespace {

bool interrupts_changeable(Cpu& cpu) noexcept {
    unsigned const iopl = (cpu.rflags & k_iopl) >> 12;
    return cpu.mode.cpl <= iopl || raise(cpu, Vector::GP, 0);
}

void write_pair(Cpu& cpu, uint64_t value) noexcept {
    cpu.reg(Gpr::Rax) = value & 0xFFFFFFFF;
    cpu.reg(Gpr::Rdx) = value >> 32;
}

} // namespace

Step halt(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    cpu.rip = next_rip(cpu, insn);
    return Step::Halt;
}

Step cli(Cpu& cpu, Insn const& insn) noexcept {
    if (!interrupts_changeable(cpu)) return Step::Fault;
    cpu.rflags &= ~k_if;
    return done(cpu, insn);
}

Step sti(Cpu& cpu, Insn const& insn) noexcept {
    if (!interrupts_changeable(cpu)) return Step::Fault;
    if (cpu.rflags & k_if) return done(cpu, insn);
    cpu.rflags |= k_if;
    cpu.interrupt_shadow = true;
    return done_leave(cpu, insn);
}

Step flag_instruction(Cpu& cpu, Insn const& insn) noexcept {
    constexpr uint64_t low = k_cf | k_pf | k_af | k_zf | k_sf;
    switch (mnemonic(insn)) {
    case ZYDIS_MNEMONIC_CLC: cpu.rflags &= ~k_cf; break;
    case ZYDIS_MNEMONIC_STC: cpu.rflags |= k_cf; break;
    case ZYDIS_MNEMONIC_CMC: cpu.rflags ^= k_cf; break;
    case ZYDIS_MNEMONIC_CLD: cpu.rflags &= ~k_df; break;
    case ZYDIS_MNEMONIC_STD: cpu.rflags |= k_df; break;
    case ZYDIS_MNEMONIC_LAHF:
        cpu.reg(Gpr::Rax) = (cpu.reg(Gpr::Rax) & ~uint64_t{0xFF00}) | ((cpu.rflags & low) | k_fixed_flag) << 8;
        break;
    default: cpu.rflags = (cpu.rflags & ~low) | ((cpu.reg(Gpr::Rax) >> 8) & low); break;
    }
    return done(cpu, insn);
}

Step cache_instruction(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    return done(cpu, insn); // guest memory is coherent
}

Step rdtsc(Cpu& cpu, Insn const& insn) noexcept {
    if ((cpu.cr4 & k_cr4_tsd) && cpu.mode.cpl != 0) return fault(cpu, Vector::GP, 0);
    write_pair(cpu, guest_tsc(cpu));
    if (mnemonic(insn) == ZYDIS_MNEMONIC_RDTSCP) cpu.reg(Gpr::Rcx) = cpu.tsc_aux & 0xFFFFFFFF;
    return done(cpu, insn);
}

Step rdpmc(Cpu& cpu, Insn const&) noexcept {
    return fault(cpu, Vector::GP, 0); // no counters
}

Step rdmsr(Cpu& cpu, Insn const& insn) noexcept {
    uint64_t value = 0;
    if (!require_cpl0(cpu)) return Step::Fault;
    if (!read_msr(cpu, static_cast<uint32_t>(cpu.reg(Gpr::Rcx)), value)) return fault(cpu, Vector::GP, 0);
    write_pair(cpu, value);
    return done(cpu, insn);
}

Step wrmsr(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    uint64_t const value = (cpu.reg(Gpr::Rax) & 0xFFFFFFFF) | cpu.reg(Gpr::Rdx) << 32;
    if (!write_msr(cpu, static_cast<uint32_t>(cpu.reg(Gpr::Rcx)), value)) return fault(cpu, Vector::GP, 0);
    return done_leave(cpu, insn);
}

Step cpuid_instruction(Cpu& cpu, Insn const& insn) noexcept {
    CpuidResult const result =
        cpuid(cpu, static_cast<uint32_t>(cpu.reg(Gpr::Rax)), static_cast<uint32_t>(cpu.reg(Gpr::Rcx)));
    cpu.reg(Gpr::Rax) = result.eax;
    cpu.reg(Gpr::Rbx) = result.ebx;
    cpu.reg(Gpr::Rcx) = result.ecx;
    cpu.reg(Gpr::Rdx) = result.edx;
    return done(cpu, insn);
}

Step undefined(Cpu& cpu, Insn const&) noexcept {
    return fault(cpu, Vector::UD);
}

Step nothing(Cpu& cpu, Insn const& insn) noexcept {
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
