#include "vmm/accel/soft/system/operand.hpp"

namespace coffer::vmm::soft {

namespace {

struct RegisterPlace {
    unsigned index = 0;
    unsigned bits = 0; // 0: not a general register
    bool high = false; // AH, CH, DH, BH
};

RegisterPlace place(ZydisRegister reg) noexcept {
    auto from = [reg](ZydisRegister first) { return static_cast<unsigned>(reg - first); };
    if (reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_BL) return {from(ZYDIS_REGISTER_AL), 8};
    if (reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH) return {from(ZYDIS_REGISTER_AH), 8, true};
    if (reg >= ZYDIS_REGISTER_SPL && reg <= ZYDIS_REGISTER_R15B) return {from(ZYDIS_REGISTER_SPL) + 4, 8};
    if (reg >= ZYDIS_REGISTER_AX && reg <= ZYDIS_REGISTER_R15W) return {from(ZYDIS_REGISTER_AX), 16};
    if (reg >= ZYDIS_REGISTER_EAX && reg <= ZYDIS_REGISTER_R15D) return {from(ZYDIS_REGISTER_EAX), 32};
    if (reg >= ZYDIS_REGISTER_RAX && reg <= ZYDIS_REGISTER_R15) return {from(ZYDIS_REGISTER_RAX), 64};
    return {};
}

} // namespace

uint8_t repeat_prefix(Insn const& insn) noexcept {
    auto const& raw = insn.decoded->raw;
    for (unsigned i = raw.prefix_count; i-- > 0;) {
        uint8_t value = raw.prefixes[i].value;
        if (value == 0xF2 || value == 0xF3) return value;
    }
    return 0;
}

uint64_t read_gpr(Cpu const& cpu, Gpr name, unsigned bits) noexcept {
    return cpu.reg(name) & mask_bits(bits);
}

void write_gpr(Cpu& cpu, Gpr name, unsigned bits, uint64_t value) noexcept {
    uint64_t& reg = cpu.reg(name);
    if (bits >= 32)
        reg = value & mask_bits(bits);
    else
        reg = (reg & ~mask_bits(bits)) | (value & mask_bits(bits));
}

Gpr gpr_name(ZydisRegister reg) noexcept {
    return static_cast<Gpr>(place(reg).index);
}

bool is_segment_register(ZydisRegister reg) noexcept {
    return reg >= ZYDIS_REGISTER_ES && reg <= ZYDIS_REGISTER_GS;
}

SegmentName segment_name(ZydisRegister reg) noexcept {
    return is_segment_register(reg) ? static_cast<SegmentName>(reg - ZYDIS_REGISTER_ES) : SegmentName::Ds;
}

uint64_t read_register(Cpu const& cpu, ZydisRegister reg) noexcept {
    if (is_segment_register(reg)) return cpu.segment(segment_name(reg)).selector;
    RegisterPlace at = place(reg);
    COFFER_ASSERT(at.bits != 0);
    uint64_t value = cpu.gpr[at.index];
    return at.high ? (value >> 8) & 0xFF : value & mask_bits(at.bits);
}

void write_register(Cpu& cpu, ZydisRegister reg, uint64_t value) noexcept {
    RegisterPlace at = place(reg);
    COFFER_ASSERT(at.bits != 0);
    if (at.high)
        cpu.gpr[at.index] = (cpu.gpr[at.index] & ~uint64_t{0xFF00}) | (value & 0xFF) << 8;
    else
        write_gpr(cpu, static_cast<Gpr>(at.index), at.bits, value);
}

uint64_t effective_address(Cpu const& cpu, Insn const& insn, Operand const& op) noexcept {
    auto const& mem = op.mem;
    uint64_t address = mem.disp.has_displacement ? static_cast<uint64_t>(mem.disp.value) : 0;
    if (mem.base == ZYDIS_REGISTER_RIP || mem.base == ZYDIS_REGISTER_EIP)
        address += cpu.rip + insn.decoded->length;
    else if (mem.base != ZYDIS_REGISTER_NONE)
        address += read_register(cpu, mem.base);
    if (mem.index != ZYDIS_REGISTER_NONE && mem.type != ZYDIS_MEMOP_TYPE_MIB) {
        address += read_register(cpu, mem.index) * mem.scale;
    }
    return address & mask_bits(insn.decoded->address_width);
}

bool is_stack_operand(Operand const& op) noexcept {
    return op.mem.segment == ZYDIS_REGISTER_SS;
}

bool operand_linear(Cpu& cpu, Insn const& insn, Operand const& op, size_t size, Access access,
                    uint64_t& linear) noexcept {
    return segment_to_linear(cpu, segment_name(op.mem.segment), effective_address(cpu, insn, op), size, access, linear);
}

bool read_memory_operand(Cpu& cpu, Insn const& insn, Operand const& op, void* to, size_t size) noexcept {
    uint64_t linear = 0;
    return operand_linear(cpu, insn, op, size, Access::Read, linear) &&
           linear_read(cpu, linear, to, size, current_privilege(cpu), is_stack_operand(op));
}

bool write_memory_operand(Cpu& cpu, Insn const& insn, Operand const& op, void const* from, size_t size) noexcept {
    uint64_t linear = 0;
    return operand_linear(cpu, insn, op, size, Access::Write, linear) &&
           linear_write(cpu, linear, from, size, current_privilege(cpu), is_stack_operand(op));
}

bool read_operand(Cpu& cpu, Insn const& insn, Operand const& op, uint64_t& value) noexcept {
    switch (op.type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: value = read_register(cpu, op.reg.value); return true;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE: value = op.imm.value.u; return true;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        COFFER_ASSERT(op.size <= 64);
        value = 0;
        return read_memory_operand(cpu, insn, op, &value, op.size / 8);
    default: return raise(cpu, Vector::UD);
    }
}

bool write_operand(Cpu& cpu, Insn const& insn, Operand const& op, uint64_t value) noexcept {
    if (is_register(op)) {
        write_register(cpu, op.reg.value, value);
        return true;
    }
    COFFER_ASSERT(is_memory(op) && op.size <= 64);
    return write_memory_operand(cpu, insn, op, &value, op.size / 8);
}

} // namespace coffer::vmm::soft
