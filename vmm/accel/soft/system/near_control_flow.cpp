// Near branches in every mode, for code that the translator does not inline (16-bit and segmented code).
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/transfer.hpp"

namespace coffer::vmm::soft {

namespace {

// 64-bit mode always branches with 64 bits (Intel ignores a 66h prefix there: SDM vol. 2, JMP).
unsigned branch_bits(Cpu const& cpu, Insn const& insn) noexcept {
    return cpu.mode.code_bits == 64 ? 64 : insn.decoded->operand_width == 16 ? 16 : 32;
}

bool read_target(Cpu& cpu, Insn const& insn, uint64_t& target) noexcept {
    Operand const& op = operand(insn, 0);
    if (op.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && op.imm.is_relative) {
        target = cpu.rip + insn.decoded->length + op.imm.value.u;
    } else if (!read_operand(cpu, insn, op, target)) {
        return false;
    }
    target &= mask_bits(branch_bits(cpu, insn));
    return true;
}

Step branch(Cpu& cpu, uint64_t target) noexcept {
    if (!check_branch_target(cpu, target)) return Step::Fault;
    cpu.rip = target;
    return Step::Leave;
}

bool condition(uint64_t flags, unsigned code) noexcept {
    bool result = false;
    switch (code >> 1) {
    case 0: result = flags & k_of; break;
    case 1: result = flags & k_cf; break;
    case 2: result = flags & k_zf; break;
    case 3: result = flags & (k_cf | k_zf); break;
    case 4: result = flags & k_sf; break;
    case 5: result = flags & k_pf; break;
    case 6: result = !(flags & k_sf) != !(flags & k_of); break;
    default: result = (flags & k_zf) || (!(flags & k_sf) != !(flags & k_of)); break;
    }
    return result != static_cast<bool>(code & 1);
}

} // namespace

Step near_jump(Cpu& cpu, Insn const& insn) noexcept {
    uint64_t target = 0;
    if (!read_target(cpu, insn, target)) return Step::Fault;
    return branch(cpu, target);
}

Step near_call(Cpu& cpu, Insn const& insn) noexcept {
    uint64_t target = 0;
    if (!read_target(cpu, insn, target) || !check_branch_target(cpu, target)) return Step::Fault;
    Stack stack(cpu);
    if (!stack.push(next_rip(cpu, insn), branch_bits(cpu, insn) / 8)) return Step::Fault;
    stack.commit();
    cpu.rip = target;
    return Step::Leave;
}

Step near_return(Cpu& cpu, Insn const& insn) noexcept {
    Stack stack(cpu);
    uint64_t target = 0;
    if (!stack.pop(target, branch_bits(cpu, insn) / 8) || !check_branch_target(cpu, target)) return Step::Fault;
    if (insn.decoded->operand_count_visible > 0) stack.skip(operand(insn, 0).imm.value.u & 0xFFFF);
    stack.commit();
    cpu.rip = target;
    return Step::Leave;
}

Step conditional_jump(Cpu& cpu, Insn const& insn) noexcept {
    if (!condition(cpu.rflags, insn.decoded->opcode & 0xF)) return done_leave(cpu, insn);
    return near_jump(cpu, insn);
}

Step loop_or_jcxz(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = insn.decoded->address_width;
    uint64_t count = read_gpr(cpu, Gpr::Rcx, bits);
    bool const zero = cpu.rflags & k_zf;
    bool taken = false;
    switch (mnemonic(insn)) {
    case ZYDIS_MNEMONIC_LOOP: taken = --count != 0; break;
    case ZYDIS_MNEMONIC_LOOPE: taken = --count != 0 && zero; break;
    case ZYDIS_MNEMONIC_LOOPNE: taken = --count != 0 && !zero; break;
    default: taken = count == 0; break;
    }
    uint64_t target = 0;
    if (!read_target(cpu, insn, target) || (taken && !check_branch_target(cpu, target))) return Step::Fault;
    bool const loop = mnemonic(insn) == ZYDIS_MNEMONIC_LOOP || mnemonic(insn) == ZYDIS_MNEMONIC_LOOPE ||
                      mnemonic(insn) == ZYDIS_MNEMONIC_LOOPNE;
    if (loop) write_gpr(cpu, Gpr::Rcx, bits, count & mask_bits(bits));
    if (!taken) return done_leave(cpu, insn);
    cpu.rip = target;
    return Step::Leave;
}

} // namespace coffer::vmm::soft
