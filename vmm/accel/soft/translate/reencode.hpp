// Re-encodes plain guest instructions for the host: registers renamed, the memory operand at [r14].
//
// Register assignment: guest RAX-R12 but RSP are themselves, guest RSP is r13, guest R13-R15 live in memory at
// [rsp + k_gpr_offset + 8 * number]; r14 and r15 are scratch. Only the fields of REX, ModRM and the opcode that name
// registers change, so the operation is the guest's own.
#pragma once

#include <optional>

#include "vmm/accel/soft/translate/decode.hpp"
#include "vmm/accel/soft/translate/emitter.hpp"

namespace coffer::vmm::soft {

constexpr int32_t k_gpr_offset = 0; // of the register array behind the state pointer

constexpr int32_t gpr_slot(unsigned number) {
    return k_gpr_offset + static_cast<int32_t>(number) * 8;
}

// The host register of a guest register, or nothing for those in memory (R13-R15).
constexpr std::optional<Host> host_of(unsigned guest) {
    if (guest == 4) return Host::r13;
    if (guest >= 13) return std::nullopt;
    return static_cast<Host>(guest);
}

// Emits `d`, which is Plain, for registers as above and its memory operand (if any) at [r14]. Uses r14 (without a
// memory operand), r15 and the sixteen bytes of state at `spare`. Flags are as the instruction leaves them: what is
// emitted around it keeps them.
void emit_plain(Emitter& e, Decoded const& d, uint64_t next_rip, int32_t spare);

// Emits the offset of `mem` within its segment into `to`, truncated to the address width; r14 and r15 are used. Flags
// are kept.
void emit_offset(Emitter& e, ZydisDecodedOperandMem const& mem, unsigned address_width, Host to, uint64_t next_rip);

// Adds the reach of a bit-string instruction's register index to r14. Uses r15, changes flags.
void emit_bit_string_reach(Emitter& e, Decoded const& d);

// Copies a guest register, whole, to a host register, or back.
void emit_get(Emitter& e, Host to, unsigned guest);
void emit_put(Emitter& e, unsigned guest, Host from);

} // namespace coffer::vmm::soft
