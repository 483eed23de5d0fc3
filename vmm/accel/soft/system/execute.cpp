// execute_system(): from a mnemonic to its handler.
#include <array>
#include <atomic>

#include "base/log.hpp"
#include "vmm/accel/soft/system/handlers.hpp"

namespace coffer::vmm::soft {

namespace {

using Handler = Step (*)(Cpu&, Insn const&) noexcept;

Step jump(Cpu& cpu, Insn const& insn) noexcept {
    bool const far = insn.decoded->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    return far ? far_jump_instruction(cpu, insn) : near_jump(cpu, insn);
}

Step call(Cpu& cpu, Insn const& insn) noexcept {
    bool const far = insn.decoded->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    return far ? far_call_instruction(cpu, insn) : near_call(cpu, insn);
}

Step ret(Cpu& cpu, Insn const& insn) noexcept {
    bool const far = (insn.decoded->opcode & 0xFE) == 0xCA;
    return far ? far_return_instruction(cpu, insn) : near_return(cpu, insn);
}

// SSE instructions share two mnemonics with the string ones and never come here as something to execute.
Step string_or_unknown(Cpu& cpu, Insn const& insn) noexcept {
    bool const string = insn.decoded->meta.category == ZYDIS_CATEGORY_STRINGOP;
    return string ? string_instruction(cpu, insn) : undefined(cpu, insn);
}

struct Entry {
    ZydisMnemonic mnemonic;
    Handler handler;
};

constexpr Entry k_entries[] = {
    {ZYDIS_MNEMONIC_JMP, jump},
    {ZYDIS_MNEMONIC_CALL, call},
    {ZYDIS_MNEMONIC_RET, ret},
    {ZYDIS_MNEMONIC_JB, conditional_jump},
    {ZYDIS_MNEMONIC_JBE, conditional_jump},
    {ZYDIS_MNEMONIC_JL, conditional_jump},
    {ZYDIS_MNEMONIC_JLE, conditional_jump},
    {ZYDIS_MNEMONIC_JNB, conditional_jump},
    {ZYDIS_MNEMONIC_JNBE, conditional_jump},
    {ZYDIS_MNEMONIC_JNL, conditional_jump},
    {ZYDIS_MNEMONIC_JNLE, conditional_jump},
    {ZYDIS_MNEMONIC_JNO, conditional_jump},
    {ZYDIS_MNEMONIC_JNP, conditional_jump},
    {ZYDIS_MNEMONIC_JNS, conditional_jump},
    {ZYDIS_MNEMONIC_JNZ, conditional_jump},
    {ZYDIS_MNEMONIC_JO, conditional_jump},
    {ZYDIS_MNEMONIC_JP, conditional_jump},
    {ZYDIS_MNEMONIC_JS, conditional_jump},
    {ZYDIS_MNEMONIC_JZ, conditional_jump},
    {ZYDIS_MNEMONIC_LOOP, loop_or_jcxz},
    {ZYDIS_MNEMONIC_LOOPE, loop_or_jcxz},
    {ZYDIS_MNEMONIC_LOOPNE, loop_or_jcxz},
    {ZYDIS_MNEMONIC_JCXZ, loop_or_jcxz},
    {ZYDIS_MNEMONIC_JECXZ, loop_or_jcxz},
    {ZYDIS_MNEMONIC_JRCXZ, loop_or_jcxz},

    {ZYDIS_MNEMONIC_PUSH, push},
    {ZYDIS_MNEMONIC_POP, pop},
    {ZYDIS_MNEMONIC_PUSHA, push_all},
    {ZYDIS_MNEMONIC_PUSHAD, push_all},
    {ZYDIS_MNEMONIC_POPA, pop_all},
    {ZYDIS_MNEMONIC_POPAD, pop_all},
    {ZYDIS_MNEMONIC_PUSHF, push_flags},
    {ZYDIS_MNEMONIC_PUSHFD, push_flags},
    {ZYDIS_MNEMONIC_PUSHFQ, push_flags},
    {ZYDIS_MNEMONIC_POPF, pop_flags},
    {ZYDIS_MNEMONIC_POPFD, pop_flags},
    {ZYDIS_MNEMONIC_POPFQ, pop_flags},
    {ZYDIS_MNEMONIC_ENTER, enter},
    {ZYDIS_MNEMONIC_LEAVE, leave},

    {ZYDIS_MNEMONIC_IRET, iret},
    {ZYDIS_MNEMONIC_IRETD, iret},
    {ZYDIS_MNEMONIC_IRETQ, iret},
    {ZYDIS_MNEMONIC_INT, software_interrupt},
    {ZYDIS_MNEMONIC_INT1, software_interrupt},
    {ZYDIS_MNEMONIC_INT3, software_interrupt},
    {ZYDIS_MNEMONIC_INTO, software_interrupt},
    {ZYDIS_MNEMONIC_LES, load_far_pointer},
    {ZYDIS_MNEMONIC_LDS, load_far_pointer},
    {ZYDIS_MNEMONIC_LSS, load_far_pointer},
    {ZYDIS_MNEMONIC_LFS, load_far_pointer},
    {ZYDIS_MNEMONIC_LGS, load_far_pointer},

    {ZYDIS_MNEMONIC_SYSCALL, syscall},
    {ZYDIS_MNEMONIC_SYSRET, sysret},
    {ZYDIS_MNEMONIC_SYSENTER, sysenter},
    {ZYDIS_MNEMONIC_SYSEXIT, sysexit},
    {ZYDIS_MNEMONIC_SWAPGS, swapgs},
    {ZYDIS_MNEMONIC_RDFSBASE, thread_base},
    {ZYDIS_MNEMONIC_RDGSBASE, thread_base},
    {ZYDIS_MNEMONIC_WRFSBASE, thread_base},
    {ZYDIS_MNEMONIC_WRGSBASE, thread_base},

    {ZYDIS_MNEMONIC_MOV, mov},
    {ZYDIS_MNEMONIC_CLTS, clts},
    {ZYDIS_MNEMONIC_LMSW, lmsw},
    {ZYDIS_MNEMONIC_SMSW, smsw},
    {ZYDIS_MNEMONIC_INVLPG, invalidate_page},
    {ZYDIS_MNEMONIC_INVPCID, invpcid},
    {ZYDIS_MNEMONIC_CLAC, set_ac},
    {ZYDIS_MNEMONIC_STAC, set_ac},

    {ZYDIS_MNEMONIC_LGDT, load_descriptor_table},
    {ZYDIS_MNEMONIC_LIDT, load_descriptor_table},
    {ZYDIS_MNEMONIC_SGDT, store_descriptor_table},
    {ZYDIS_MNEMONIC_SIDT, store_descriptor_table},
    {ZYDIS_MNEMONIC_LLDT, load_system_segment},
    {ZYDIS_MNEMONIC_LTR, load_system_segment},
    {ZYDIS_MNEMONIC_SLDT, store_system_segment},
    {ZYDIS_MNEMONIC_STR, store_system_segment},
    {ZYDIS_MNEMONIC_LAR, load_access_rights},
    {ZYDIS_MNEMONIC_LSL, load_access_rights},
    {ZYDIS_MNEMONIC_VERR, verify_segment},
    {ZYDIS_MNEMONIC_VERW, verify_segment},
    {ZYDIS_MNEMONIC_ARPL, adjust_rpl},

    {ZYDIS_MNEMONIC_HLT, halt},
    {ZYDIS_MNEMONIC_CLI, cli},
    {ZYDIS_MNEMONIC_STI, sti},
    {ZYDIS_MNEMONIC_CLC, flag_instruction},
    {ZYDIS_MNEMONIC_STC, flag_instruction},
    {ZYDIS_MNEMONIC_CMC, flag_instruction},
    {ZYDIS_MNEMONIC_CLD, flag_instruction},
    {ZYDIS_MNEMONIC_STD, flag_instruction},
    {ZYDIS_MNEMONIC_LAHF, flag_instruction},
    {ZYDIS_MNEMONIC_SAHF, flag_instruction},
    {ZYDIS_MNEMONIC_INVD, cache_instruction},
    {ZYDIS_MNEMONIC_WBINVD, cache_instruction},
    {ZYDIS_MNEMONIC_RDTSC, rdtsc},
    {ZYDIS_MNEMONIC_RDTSCP, rdtsc},
    {ZYDIS_MNEMONIC_RDPMC, rdpmc},
    {ZYDIS_MNEMONIC_RDMSR, rdmsr},
    {ZYDIS_MNEMONIC_WRMSR, wrmsr},
    {ZYDIS_MNEMONIC_CPUID, cpuid_instruction},
    {ZYDIS_MNEMONIC_PAUSE, nothing},
    {ZYDIS_MNEMONIC_NOP, nothing},
    {ZYDIS_MNEMONIC_SERIALIZE, nothing},
    // Defined to be undefined, or hidden by CPUID: not worth a line in the log.
    {ZYDIS_MNEMONIC_UD0, undefined},
    {ZYDIS_MNEMONIC_UD1, undefined},
    {ZYDIS_MNEMONIC_UD2, undefined},
    {ZYDIS_MNEMONIC_XGETBV, undefined},
    {ZYDIS_MNEMONIC_XSETBV, undefined},
    {ZYDIS_MNEMONIC_MONITOR, undefined},
    {ZYDIS_MNEMONIC_MWAIT, undefined},
    {ZYDIS_MNEMONIC_VMCALL, undefined},
    {ZYDIS_MNEMONIC_VMMCALL, undefined},

    {ZYDIS_MNEMONIC_FXSAVE, fxsave},
    {ZYDIS_MNEMONIC_FXSAVE64, fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR, fxrstor},
    {ZYDIS_MNEMONIC_FXRSTOR64, fxrstor},

    {ZYDIS_MNEMONIC_MOVSB, string_instruction},
    {ZYDIS_MNEMONIC_MOVSW, string_instruction},
    {ZYDIS_MNEMONIC_MOVSD, string_or_unknown},
    {ZYDIS_MNEMONIC_MOVSQ, string_instruction},
    {ZYDIS_MNEMONIC_STOSB, string_instruction},
    {ZYDIS_MNEMONIC_STOSW, string_instruction},
    {ZYDIS_MNEMONIC_STOSD, string_instruction},
    {ZYDIS_MNEMONIC_STOSQ, string_instruction},
    {ZYDIS_MNEMONIC_LODSB, string_instruction},
    {ZYDIS_MNEMONIC_LODSW, string_instruction},
    {ZYDIS_MNEMONIC_LODSD, string_instruction},
    {ZYDIS_MNEMONIC_LODSQ, string_instruction},
    {ZYDIS_MNEMONIC_CMPSB, string_instruction},
    {ZYDIS_MNEMONIC_CMPSW, string_instruction},
    {ZYDIS_MNEMONIC_CMPSD, string_or_unknown},
    {ZYDIS_MNEMONIC_CMPSQ, string_instruction},
    {ZYDIS_MNEMONIC_SCASB, string_instruction},
    {ZYDIS_MNEMONIC_SCASW, string_instruction},
    {ZYDIS_MNEMONIC_SCASD, string_instruction},
    {ZYDIS_MNEMONIC_SCASQ, string_instruction},

    {ZYDIS_MNEMONIC_IN, in_out},
    {ZYDIS_MNEMONIC_OUT, in_out},
    {ZYDIS_MNEMONIC_INSB, string_io},
    {ZYDIS_MNEMONIC_INSW, string_io},
    {ZYDIS_MNEMONIC_INSD, string_io},
    {ZYDIS_MNEMONIC_OUTSB, string_io},
    {ZYDIS_MNEMONIC_OUTSW, string_io},
    {ZYDIS_MNEMONIC_OUTSD, string_io},

    {ZYDIS_MNEMONIC_DAA, decimal_adjust},
    {ZYDIS_MNEMONIC_DAS, decimal_adjust},
    {ZYDIS_MNEMONIC_AAA, decimal_adjust},
    {ZYDIS_MNEMONIC_AAS, decimal_adjust},
    {ZYDIS_MNEMONIC_AAM, decimal_adjust},
    {ZYDIS_MNEMONIC_AAD, decimal_adjust},
    {ZYDIS_MNEMONIC_SALC, salc},
    {ZYDIS_MNEMONIC_BOUND, bound},
    {ZYDIS_MNEMONIC_XLAT, xlat},
};

constexpr auto k_handlers = [] {
    std::array<Handler, ZYDIS_MNEMONIC_MAX_VALUE + 1> table{};
    for (Entry const& entry : k_entries) table[entry.mnemonic] = entry.handler;
    return table;
}();

Step unknown(Cpu& cpu, Insn const& insn) noexcept {
    static std::array<std::atomic<bool>, ZYDIS_MNEMONIC_MAX_VALUE + 1> seen{};
    if (!seen[mnemonic(insn)].exchange(true)) {
        log::warning("soft: guest instruction {} at {:#x} is not offered: #UD", ZydisMnemonicGetString(mnemonic(insn)),
                     cpu.rip);
    }
    return fault(cpu, Vector::UD);
}

} // namespace

Step execute_system(Cpu& cpu, Insn const& insn) noexcept {
    ++cpu.system_instructions;
    // The shadow of STI and MOV SS covers this instruction alone.
    cpu.interrupt_shadow = false;
    Handler const handler = k_handlers[mnemonic(insn)];
    return handler ? handler(cpu, insn) : unknown(cpu, insn);
}

} // namespace coffer::vmm::soft
