// Far branches, software interrupts and far-pointer loads as instructions (Intel SDM vol. 2).
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/transfer.hpp"

namespace coffer::vmm::soft {

namespace {

unsigned operand_bits(Insn const& insn) noexcept {
    return insn.decoded->operand_width;
}

// A direct ptr16:16/32, or m16:16/32/64 in memory: offset first.
bool read_far_pointer(Cpu& cpu, Insn const& insn, Operand const& op, uint16_t& selector, uint64_t& offset) noexcept {
    if (op.type == ZYDIS_OPERAND_TYPE_POINTER) {
        selector = op.ptr.segment;
        offset = op.ptr.offset;
        return true;
    }
    size_t const width = operand_bits(insn) / 8;
    std::array<uint8_t, 10> raw{};
    if (!read_memory_operand(cpu, insn, op, raw.data(), width + 2)) return false;
    offset = 0;
    for (size_t i = width; i-- > 0;) offset = offset << 8 | raw[i];
    selector = static_cast<uint16_t>(raw[width] | raw[width + 1] << 8);
    return true;
}

Step left(bool transferred) noexcept {
    return transferred ? Step::Leave : Step::Fault;
}

Step deliver_software(Cpu& cpu, Insn const& insn, uint8_t vector, bool software) noexcept {
    return left(deliver_event(cpu, {.vector = vector, .software = software, .return_rip = next_rip(cpu, insn)}));
}

} // namespace

Step far_jump_instruction(Cpu& cpu, Insn const& insn) noexcept {
    uint16_t selector = 0;
    uint64_t offset = 0;
    if (!read_far_pointer(cpu, insn, operand(insn, 0), selector, offset)) return Step::Fault;
    return left(far_jump(cpu, selector, offset));
}

Step far_call_instruction(Cpu& cpu, Insn const& insn) noexcept {
    uint16_t selector = 0;
    uint64_t offset = 0;
    if (!read_far_pointer(cpu, insn, operand(insn, 0), selector, offset)) return Step::Fault;
    return left(far_call(cpu, selector, offset, operand_bits(insn), next_rip(cpu, insn)));
}

Step far_return_instruction(Cpu& cpu, Insn const& insn) noexcept {
    uint64_t const release = insn.decoded->operand_count_visible > 0 ? operand(insn, 0).imm.value.u & 0xFFFF : 0;
    return left(far_return(cpu, operand_bits(insn), release));
}

Step iret(Cpu& cpu, Insn const& insn) noexcept {
    switch (mnemonic(insn)) {
    case ZYDIS_MNEMONIC_IRET: return left(interrupt_return(cpu, 16));
    case ZYDIS_MNEMONIC_IRETD: return left(interrupt_return(cpu, 32));
    default: return left(interrupt_return(cpu, 64));
    }
}

Step software_interrupt(Cpu& cpu, Insn const& insn) noexcept {
    switch (mnemonic(insn)) {
    case ZYDIS_MNEMONIC_INT3: return deliver_software(cpu, insn, static_cast<uint8_t>(Vector::BP), true);
    case ZYDIS_MNEMONIC_INT1: return deliver_software(cpu, insn, static_cast<uint8_t>(Vector::DB), false);
    case ZYDIS_MNEMONIC_INTO:
        if (!(cpu.rflags & k_of)) return done(cpu, insn);
        return deliver_software(cpu, insn, static_cast<uint8_t>(Vector::OF), true);
    default: return deliver_software(cpu, insn, static_cast<uint8_t>(operand(insn, 0).imm.value.u), true);
    }
}

Step load_far_pointer(Cpu& cpu, Insn const& insn) noexcept {
    SegmentName name = SegmentName::Gs;
    switch (mnemonic(insn)) {
    case ZYDIS_MNEMONIC_LES: name = SegmentName::Es; break;
    case ZYDIS_MNEMONIC_LDS: name = SegmentName::Ds; break;
    case ZYDIS_MNEMONIC_LSS: name = SegmentName::Ss; break;
    case ZYDIS_MNEMONIC_LFS: name = SegmentName::Fs; break;
    default: break;
    }
    uint16_t selector = 0;
    uint64_t offset = 0;
    if (!read_far_pointer(cpu, insn, operand(insn, 1), selector, offset)) return Step::Fault;
    if (!load_segment(cpu, name, selector)) return Step::Fault;
    write_register(cpu, operand(insn, 0).reg.value, offset);
    update_mode(cpu);
    return done_leave(cpu, insn);
}

} // namespace coffer::vmm::soft
