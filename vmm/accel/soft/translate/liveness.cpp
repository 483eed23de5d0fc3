#include "vmm/accel/soft/translate/liveness.hpp"

namespace coffer::vmm::soft {

namespace {

bool may_shift_by_zero(ZydisMnemonic mnemonic) {
    switch (mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD: return true;
    default: return false;
    }
}

// The last operand of a shift: an immediate (or the implied 1) that is not 0 even when masked.
bool certain_count(Decoded const& d) {
    ZydisDecodedOperand const& count = d.operands[d.insn.operand_count_visible - 1U];
    return count.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && (count.imm.value.u & 0x1F) != 0;
}

} // namespace

FlagUse flag_use(Decoded const& d) noexcept {
    FlagUse use;
    if (d.cls == InsnClass::System || d.cls == InsnClass::Undefined) {
        use.reads = k_arithmetic_flags;
        use.touches = true;
        use.shows = true;
        return use;
    }
    bool divides = d.insn.mnemonic == ZYDIS_MNEMONIC_DIV || d.insn.mnemonic == ZYDIS_MNEMONIC_IDIV;
    use.shows = d.cls != InsnClass::Plain || d.memory.present || d.fpu != FpuUse::None || divides;
    ZydisAccessedFlags const* flags = d.insn.cpu_flags;
    if (!flags) return use;
    use.reads = flags->tested & k_arithmetic_flags;
    uint32_t written = (flags->modified | flags->set_0 | flags->set_1) & k_arithmetic_flags;
    use.touches = (written | (flags->undefined & k_arithmetic_flags)) != 0;
    if (!may_shift_by_zero(d.insn.mnemonic) || certain_count(d)) use.kills = written & ~flags->undefined;
    return use;
}

void compute_liveness(std::span<Decoded const> insns, std::span<FlagUse> uses, std::span<uint32_t> live) noexcept {
    uint32_t after = k_arithmetic_flags;
    for (size_t i = insns.size(); i-- > 0;) {
        uses[i] = flag_use(insns[i]);
        after = uses[i].shows ? k_arithmetic_flags : (after & ~uses[i].kills) | uses[i].reads;
        live[i] = after;
    }
}

} // namespace coffer::vmm::soft
