// One handler for each family of instructions that is not plain; execute_system() dispatches by mnemonic. A handler
// finds Cpu::rip at the instruction and leaves it there when it returns Step::Fault.
#pragma once

#include "vmm/accel/soft/system/operand.hpp"

namespace coffer::vmm::soft {

// An instruction that only CPL 0 may run. False: #GP(0).
inline bool require_cpl0(Cpu& cpu) noexcept {
    return cpu.mode.cpl == 0 || raise(cpu, Vector::GP, 0);
}
// Protected mode only. False: #UD.
inline bool require_protected(Cpu& cpu) noexcept {
    return cpu.mode.protected_mode || raise(cpu, Vector::UD);
}
// What UMIP forbids outside of CPL 0 (SDM vol. 3, 2.5).
inline bool umip_allows(Cpu& cpu) noexcept {
    return !(cpu.cr4 & k_cr4_umip) || cpu.mode.cpl == 0 || raise(cpu, Vector::GP, 0);
}

// near_control_flow.cpp
Step near_jump(Cpu& cpu, Insn const& insn) noexcept;
Step near_call(Cpu& cpu, Insn const& insn) noexcept;
Step near_return(Cpu& cpu, Insn const& insn) noexcept;
Step conditional_jump(Cpu& cpu, Insn const& insn) noexcept;
Step loop_or_jcxz(Cpu& cpu, Insn const& insn) noexcept;

// stack_instructions.cpp
Step push(Cpu& cpu, Insn const& insn) noexcept;
Step pop(Cpu& cpu, Insn const& insn) noexcept;
Step push_all(Cpu& cpu, Insn const& insn) noexcept;
Step pop_all(Cpu& cpu, Insn const& insn) noexcept;
Step push_flags(Cpu& cpu, Insn const& insn) noexcept;
Step pop_flags(Cpu& cpu, Insn const& insn) noexcept;
Step enter(Cpu& cpu, Insn const& insn) noexcept;
Step leave(Cpu& cpu, Insn const& insn) noexcept;

// far_instructions.cpp
Step far_jump_instruction(Cpu& cpu, Insn const& insn) noexcept;
Step far_call_instruction(Cpu& cpu, Insn const& insn) noexcept;
Step far_return_instruction(Cpu& cpu, Insn const& insn) noexcept;
Step iret(Cpu& cpu, Insn const& insn) noexcept;
Step software_interrupt(Cpu& cpu, Insn const& insn) noexcept;
Step load_far_pointer(Cpu& cpu, Insn const& insn) noexcept; // LES, LDS, LSS, LFS, LGS

// fast_syscall.cpp
Step syscall(Cpu& cpu, Insn const& insn) noexcept;
Step sysret(Cpu& cpu, Insn const& insn) noexcept;
Step sysenter(Cpu& cpu, Insn const& insn) noexcept;
Step sysexit(Cpu& cpu, Insn const& insn) noexcept;
Step swapgs(Cpu& cpu, Insn const& insn) noexcept;
Step thread_base(Cpu& cpu, Insn const& insn) noexcept; // RDFSBASE and its three relatives

// control_registers.cpp
Step mov(Cpu& cpu, Insn const& insn) noexcept; // CRn, DRn, segment registers; plain operands too
Step clts(Cpu& cpu, Insn const& insn) noexcept;
Step lmsw(Cpu& cpu, Insn const& insn) noexcept;
Step smsw(Cpu& cpu, Insn const& insn) noexcept;
Step invalidate_page(Cpu& cpu, Insn const& insn) noexcept;
Step invpcid(Cpu& cpu, Insn const& insn) noexcept;
Step set_ac(Cpu& cpu, Insn const& insn) noexcept; // CLAC, STAC
// False: #GP(0) in Cpu::fault.
bool write_cr0(Cpu& cpu, uint64_t value) noexcept;
bool write_cr3(Cpu& cpu, uint64_t value) noexcept;
bool write_cr4(Cpu& cpu, uint64_t value) noexcept;

// debug_registers.cpp
bool read_dr(Cpu& cpu, unsigned number, uint64_t& value) noexcept;
bool write_dr(Cpu& cpu, unsigned number, uint64_t value) noexcept;

// descriptor_tables.cpp
Step load_descriptor_table(Cpu& cpu, Insn const& insn) noexcept;  // LGDT, LIDT
Step store_descriptor_table(Cpu& cpu, Insn const& insn) noexcept; // SGDT, SIDT
Step load_system_segment(Cpu& cpu, Insn const& insn) noexcept;    // LLDT, LTR
Step store_system_segment(Cpu& cpu, Insn const& insn) noexcept;   // SLDT, STR
Step load_access_rights(Cpu& cpu, Insn const& insn) noexcept;     // LAR, LSL
Step verify_segment(Cpu& cpu, Insn const& insn) noexcept;         // VERR, VERW
Step adjust_rpl(Cpu& cpu, Insn const& insn) noexcept;             // ARPL

// processor_control.cpp
Step halt(Cpu& cpu, Insn const& insn) noexcept;
Step cli(Cpu& cpu, Insn const& insn) noexcept;
Step sti(Cpu& cpu, Insn const& insn) noexcept;
Step flag_instruction(Cpu& cpu, Insn const& insn) noexcept;  // CLC, STC, CMC, CLD, STD, LAHF, SAHF
Step cache_instruction(Cpu& cpu, Insn const& insn) noexcept; // INVD, WBINVD
Step rdtsc(Cpu& cpu, Insn const& insn) noexcept;             // RDTSCP too
Step rdpmc(Cpu& cpu, Insn const& insn) noexcept;
Step rdmsr(Cpu& cpu, Insn const& insn) noexcept;
Step wrmsr(Cpu& cpu, Insn const& insn) noexcept;
Step cpuid_instruction(Cpu& cpu, Insn const& insn) noexcept;
Step undefined(Cpu& cpu, Insn const& insn) noexcept;
Step nothing(Cpu& cpu, Insn const& insn) noexcept; // PAUSE, NOP, SERIALIZE

// fpu_state.cpp
Step fxsave(Cpu& cpu, Insn const& insn) noexcept;
Step fxrstor(Cpu& cpu, Insn const& insn) noexcept;

// string_instructions.cpp
Step string_instruction(Cpu& cpu, Insn const& insn) noexcept; // MOVS, STOS, LODS, CMPS, SCAS

// io_instructions.cpp
Step in_out(Cpu& cpu, Insn const& insn) noexcept;
Step string_io(Cpu& cpu, Insn const& insn) noexcept; // INS, OUTS

// legacy_arithmetic.cpp
Step decimal_adjust(Cpu& cpu, Insn const& insn) noexcept; // DAA, DAS, AAA, AAS, AAM, AAD
Step salc(Cpu& cpu, Insn const& insn) noexcept;
Step bound(Cpu& cpu, Insn const& insn) noexcept;
Step xlat(Cpu& cpu, Insn const& insn) noexcept;

} // namespace coffer::vmm::soft
