// A wrong re-encoding, planted into the code that one side of a comparison gets: a harness that misses it is worthless.
#pragma once

#include <cstdint>
#include <vector>

#include "vmm/accel/soft/translate/decode.hpp"

namespace coffer::tests {

// Turns instructions of one mnemonic into another whose opcode differs in some bits.
struct PlantedFault {
    ZydisMnemonic from;
    ZydisMnemonic to;
    uint8_t opcode_bits;
};

inline constexpr PlantedFault k_planted_faults[] = {
    {ZYDIS_MNEMONIC_ADD, ZYDIS_MNEMONIC_ADC, 0x10}, // differs where CF is set
    {ZYDIS_MNEMONIC_SUB, ZYDIS_MNEMONIC_CMP, 0x10}, // leaves the destination alone
    {ZYDIS_MNEMONIC_CMOVZ, ZYDIS_MNEMONIC_CMOVNZ, 0x01},
    {ZYDIS_MNEMONIC_PXOR, ZYDIS_MNEMONIC_POR, 0x04}, // XMM alone
};

// Returns how many instructions of `code` were changed.
inline size_t plant(PlantedFault const& fault, std::vector<uint8_t>& code) {
    using namespace vmm::soft;
    size_t planted = 0;
    for (size_t at = 0; at < code.size();) {
        Decoded d{};
        if (decode(64, std::span(code).subspan(at), d) != DecodeStatus::Ok) break;
        if (d.insn.mnemonic == fault.from) {
            // Opcode bytes end where ModRM, or else the immediate, begins.
            size_t behind = d.insn.raw.modrm.offset  ? d.insn.raw.modrm.offset
                            : d.insn.raw.imm[0].size ? d.insn.raw.imm[0].offset
                                                     : d.length();
            std::vector<uint8_t> changed(code.begin() + static_cast<ptrdiff_t>(at),
                                         code.begin() + static_cast<ptrdiff_t>(at + d.length()));
            changed[behind - 1] ^= fault.opcode_bits;
            Decoded after{};
            if (decode(64, changed, after) == DecodeStatus::Ok && after.insn.mnemonic == fault.to &&
                after.length() == d.length()) {
                code[at + behind - 1] = changed[behind - 1];
                ++planted;
            }
        }
        at += d.length();
    }
    return planted;
}

} // namespace coffer::tests
