// Operands of an instruction, by Zydis operand: registers, immediates and memory with its segment.
#pragma once

#include <Zydis/Zydis.h>

#include "vmm/accel/soft/system/mmu.hpp"

namespace coffer::vmm::soft {

using Operand = ZydisDecodedOperand_;

inline Operand const& operand(Insn const& insn, size_t index) noexcept {
    return insn.operands[index];
}
inline ZydisMnemonic mnemonic(Insn const& insn) noexcept {
    return insn.decoded->mnemonic;
}
inline bool is_memory(Operand const& op) noexcept {
    return op.type == ZYDIS_OPERAND_TYPE_MEMORY;
}
inline bool is_register(Operand const& op) noexcept {
    return op.type == ZYDIS_OPERAND_TYPE_REGISTER;
}

// Where execution goes on: behind `insn`, as the mode wraps it.
inline uint64_t next_rip(Cpu const& cpu, Insn const& insn) noexcept {
    uint64_t next = cpu.rip + insn.decoded->length;
    return cpu.mode.code_bits == 64 ? next : cpu.mode.code_bits == 32 ? next & 0xFFFFFFFF : next & 0xFFFF;
}
inline Step done(Cpu& cpu, Insn const& insn) noexcept {
    cpu.rip = next_rip(cpu, insn);
    return Step::Next;
}
inline Step done_leave(Cpu& cpu, Insn const& insn) noexcept {
    cpu.rip = next_rip(cpu, insn);
    return Step::Leave;
}

// The last of F2 and F3 in front of the opcode decides; 0 without either.
uint8_t repeat_prefix(Insn const& insn) noexcept;

// General registers by width: 8-bit high ones included, 32-bit writes clear the upper half, 16- and 8-bit ones keep it.
uint64_t read_gpr(Cpu const& cpu, Gpr name, unsigned bits) noexcept;
void write_gpr(Cpu& cpu, Gpr name, unsigned bits, uint64_t value) noexcept;
uint64_t read_register(Cpu const& cpu, ZydisRegister reg) noexcept;
void write_register(Cpu& cpu, ZydisRegister reg, uint64_t value) noexcept;
Gpr gpr_name(ZydisRegister reg) noexcept;
bool is_segment_register(ZydisRegister reg) noexcept;
SegmentName segment_name(ZydisRegister reg) noexcept;

// The offset within the segment, truncated to the address size.
uint64_t effective_address(Cpu const& cpu, Insn const& insn, Operand const& op) noexcept;
// With the segment's checks. False: Cpu::fault.
bool operand_linear(Cpu& cpu, Insn const& insn, Operand const& op, size_t size, Access access,
                    uint64_t& linear) noexcept;
bool is_stack_operand(Operand const& op) noexcept;

bool read_memory_operand(Cpu& cpu, Insn const& insn, Operand const& op, void* to, size_t size) noexcept;
bool write_memory_operand(Cpu& cpu, Insn const& insn, Operand const& op, void const* from, size_t size) noexcept;

// An operand of 1 to 8 bytes by value. Immediates come sign-extended to 64 bits where Zydis says they are signed.
bool read_operand(Cpu& cpu, Insn const& insn, Operand const& op, uint64_t& value) noexcept;
bool write_operand(Cpu& cpu, Insn const& insn, Operand const& op, uint64_t value) noexcept;

} // namespace coffer::vmm::soft
