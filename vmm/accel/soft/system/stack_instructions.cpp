// PUSH, POP and their relatives in every mode (Intel SDM vol. 2).
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/transfer.hpp"

namespace coffer::vmm::soft {

namespace {

// 64-bit mode pushes 64 bits or, with 66h, 16.
unsigned stack_operand_bits(Cpu const& cpu, Insn const& insn) noexcept {
    if (cpu.mode.code_bits != 64) return insn.decoded->operand_width == 16 ? 16 : 32;
    for (unsigned i = 0; i < insn.decoded->raw.prefix_count; ++i) {
        if (insn.decoded->raw.prefixes[i].value == 0x66 && !insn.decoded->raw.rex.W) return 16;
    }
    return 64;
}

constexpr std::array<Gpr, 8> k_all{Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi};

} // namespace

Step push(Cpu& cpu, Insn const& insn) noexcept {
    Operand const& op = operand(insn, 0);
    unsigned const bits = stack_operand_bits(cpu, insn);
    uint64_t value = 0;
    if (!read_operand(cpu, insn, op, value)) return Step::Fault;
    if (op.type == ZYDIS_OPERAND_TYPE_IMMEDIATE && !op.imm.is_signed) value = sign_extend(value, op.size);
    Stack stack(cpu);
    if (!stack.push(value & mask_bits(bits), bits / 8)) return Step::Fault;
    stack.commit();
    return done(cpu, insn);
}

Step pop(Cpu& cpu, Insn const& insn) noexcept {
    Operand const& op = operand(insn, 0);
    unsigned const bits = stack_operand_bits(cpu, insn);
    Stack stack(cpu);
    uint64_t value = 0;
    if (!stack.pop(value, bits / 8)) return Step::Fault;

    if (is_register(op) && is_segment_register(op.reg.value)) {
        SegmentName const name = segment_name(op.reg.value);
        unsigned const stack_bits = cpu.mode.stack_bits;
        if (!load_segment(cpu, name, static_cast<uint16_t>(value))) return Step::Fault;
        set_stack_pointer(cpu, stack.pointer(), stack_bits);
        if (name == SegmentName::Ss) cpu.interrupt_shadow = true;
        update_mode(cpu);
        return done_leave(cpu, insn);
    }
    // A memory operand based on RSP is addressed with RSP behind the pop.
    uint64_t const old_pointer = cpu.reg(Gpr::Rsp);
    stack.commit();
    if (!write_operand(cpu, insn, op, value)) {
        cpu.reg(Gpr::Rsp) = old_pointer;
        return Step::Fault;
    }
    return done(cpu, insn);
}

Step push_all(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = insn.decoded->operand_width == 16 ? 16 : 32;
    Stack stack(cpu);
    for (Gpr name : k_all) {
        if (!stack.push(read_gpr(cpu, name, bits), bits / 8)) return Step::Fault;
    }
    stack.commit();
    return done(cpu, insn);
}

Step pop_all(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = insn.decoded->operand_width == 16 ? 16 : 32;
    Stack stack(cpu);
    std::array<uint64_t, 8> values{};
    for (size_t i = values.size(); i-- > 0;) {
        if (!stack.pop(values[i], bits / 8)) return Step::Fault;
    }
    for (size_t i = 0; i < values.size(); ++i) {
        if (k_all[i] != Gpr::Rsp) write_gpr(cpu, k_all[i], bits, values[i]);
    }
    stack.commit();
    return done(cpu, insn);
}

Step push_flags(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = stack_operand_bits(cpu, insn);
    Stack stack(cpu);
    if (!stack.push(cpu.rflags & ~(k_vm | k_rf) & mask_bits(bits), bits / 8)) return Step::Fault;
    stack.commit();
    return done(cpu, insn);
}

Step pop_flags(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = stack_operand_bits(cpu, insn);
    Stack stack(cpu);
    uint64_t value = 0;
    if (!stack.pop(value, bits / 8)) return Step::Fault;
    stack.commit();

    uint64_t mask = k_arithmetic_flags | k_tf | k_df | k_nt;
    if (bits > 16) mask |= k_ac | k_id;
    unsigned const iopl = (cpu.rflags & k_iopl) >> 12;
    if (cpu.mode.cpl <= iopl) mask |= k_if;
    if (cpu.mode.cpl == 0) mask |= k_iopl;
    uint64_t const old = cpu.rflags;
    cpu.rflags = ((old & ~mask) | (value & mask) | k_fixed_flag) & ~k_rf;
    if ((old & k_ac) && !(cpu.rflags & k_ac)) drop_user_pages_from_supervisor_set(cpu);
    uint64_t const changed = old ^ cpu.rflags;
    return changed & (k_tf | k_if | k_ac | k_iopl) ? done_leave(cpu, insn) : done(cpu, insn);
}

Step enter(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = stack_operand_bits(cpu, insn);
    uint64_t const size = operand(insn, 0).imm.value.u & 0xFFFF;
    unsigned const level = operand(insn, 1).imm.value.u & 31;
    unsigned const stack_bits = cpu.mode.stack_bits;

    Stack stack(cpu);
    if (!stack.push(read_gpr(cpu, Gpr::Rbp, bits), bits / 8)) return Step::Fault;
    uint64_t const frame = stack.pointer();
    uint64_t display = read_gpr(cpu, Gpr::Rbp, stack_bits);
    for (unsigned i = 1; i < level; ++i) {
        display = (display - bits / 8) & mask_bits(stack_bits);
        uint64_t linear = 0, value = 0;
        if (!segment_to_linear(cpu, SegmentName::Ss, display, bits / 8, Access::Read, linear)) return Step::Fault;
        if (!linear_read(cpu, linear, &value, bits / 8, current_privilege(cpu), true)) return Step::Fault;
        if (!stack.push(value, bits / 8)) return Step::Fault;
    }
    if (level > 0 && !stack.push(frame & mask_bits(bits), bits / 8)) return Step::Fault;
    stack.skip(uint64_t{0} - size);
    // A write of the last word would fault: checked, nothing written (SDM vol. 2, ENTER).
    uint64_t linear = 0;
    if (!segment_to_linear(cpu, SegmentName::Ss, stack.pointer(), bits / 8, Access::Write, linear)) return Step::Fault;
    if (!linear_check_write(cpu, linear, bits / 8, current_privilege(cpu), true)) return Step::Fault;
    write_gpr(cpu, Gpr::Rbp, bits, frame);
    stack.commit();
    return done(cpu, insn);
}

Step leave(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = stack_operand_bits(cpu, insn);
    unsigned const stack_bits = cpu.mode.stack_bits;
    Stack stack(cpu, cpu.segment(SegmentName::Ss), read_gpr(cpu, Gpr::Rbp, stack_bits), stack_bits,
                current_privilege(cpu), 0);
    uint64_t value = 0;
    if (!stack.pop(value, bits / 8)) return Step::Fault;
    stack.commit();
    write_gpr(cpu, Gpr::Rbp, bits, value);
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
