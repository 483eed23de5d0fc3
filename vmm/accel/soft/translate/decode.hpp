// Guest instructions as the translator sees them: decoded, classified by the allow-list, with their memory operand
// described. Everything here is pure; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include <Zydis/Zydis.h>

#include "vmm/accel/soft/cpu.hpp"

namespace coffer::vmm::soft {

// What may be done with an instruction. Only Plain ones ever reach the host CPU.
enum class InsnClass : uint8_t {
    Plain,     // re-encoded and run natively
    Branch,    // near control flow: translated
    Stack,     // PUSH, POP, LEAVE of general registers, immediates and memory: translated in flat code
    System,    // execute_system()
    Undefined, // #UD
};

// Which part of the FPU an instruction needs (CR0.EM, CR0.TS, CR4.OSFXSR; SDM vol. 3, 2.5 and 13.1).
enum class FpuUse : uint8_t { None, X87, Wait, Mmx, Sse };

// The one explicit memory operand of a Plain, Branch or Stack instruction (LEA, NOP and prefetches have none).
struct MemoryAccess {
    bool present = false;
    bool read = false;
    bool write = false;
    uint8_t operand = 0; // index into Decoded::operands
    SegmentName segment = SegmentName::Ds;
    uint16_t size = 0; // bytes, at most k_max_memory_operand
};
constexpr size_t k_max_memory_operand = 108; // FNSAVE

struct Decoded {
    ZydisDecodedInstruction insn;
    std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
    std::array<uint8_t, 15> bytes;
    uint8_t code_bits = 0;
    InsnClass cls = InsnClass::Undefined;
    FpuUse fpu = FpuUse::None;
    bool bit_string = false; // BT, BTS, BTR, BTC of memory by a register: the index reaches beyond the operand
    bool scrub = false; // stores the FPU's instruction and data pointers, which are the host's: native_step() alone
    MemoryAccess memory;

    uint8_t length() const { return insn.length; }
    Insn view() const { return Insn{&insn, operands.data(), bytes}; }
};

enum class DecodeStatus : uint8_t {
    Ok,
    NeedMore,  // the bytes end within the instruction
    TooLong,   // more than 15 bytes: #GP(0)
    Undefined, // #UD
};

// Decodes at most 15 of `bytes` as `code_bits` (16, 32, 64) code and classifies. BMI, LZCNT, CET and MPX are masked:
// their encodings mean what they mean on a CPU without them.
DecodeStatus decode(unsigned code_bits, std::span<uint8_t const> bytes, Decoded& to) noexcept;

// For one decoded elsewhere (with the same decoder modes).
void classify(Decoded& decoded) noexcept;

// The offset of the memory operand within its segment, truncated to the address size. `next_rip` is the address behind
// the instruction.
uint64_t effective_offset(Decoded const& decoded, std::array<uint64_t, 16> const& gpr, uint64_t next_rip) noexcept;

// Gpr's number (0-15) of a general register of any width; AH, CH, DH and BH give 0-3.
unsigned gpr_number(ZydisRegister reg) noexcept;
bool is_gpr(ZydisRegister reg) noexcept;
bool is_high_byte(ZydisRegister reg) noexcept;
// Bytes of a general register.
unsigned gpr_bytes(ZydisRegister reg) noexcept;

} // namespace coffer::vmm::soft
