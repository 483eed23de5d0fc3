// A translated basic block and its key.
#pragma once

#include <cstdint>

#include "vmm/accel/soft/translate/frame.hpp"

namespace coffer::vmm::soft {

// Everything of the CPU's state that translation bakes in. Blocks of different keys are never linked to each other.
struct ModeKey {
    uint8_t code_bits = 0; // 32 or 64; 0: not translated (16-bit and segmented code)
    bool user = false;     // CPL 3: which TLB set, which salt
    uint8_t fpu = 0;       // CR0.MP, EM, TS and CR4.OSFXSR

    constexpr bool operator==(ModeKey const&) const = default;
    constexpr uint32_t packed() const { return code_bits | (user ? 0x100U : 0) | static_cast<uint32_t>(fpu) << 16; }
};

constexpr uint64_t k_cr0_fpu_bits = 0xE; // MP, EM, TS
constexpr uint64_t k_cr4_osfxsr_bit = 1 << 9;

inline ModeKey mode_key(Cpu const& cpu) noexcept {
    ModeKey key;
    if (cpu.mode.code_bits == 64)
        key.code_bits = 64;
    else if (cpu.mode.code_bits == 32 && cpu.mode.flat && cpu.mode.stack_bits == 32 && !cpu.mode.virtual_8086)
        key.code_bits = 32;
    key.user = cpu.mode.cpl == 3;
    key.fpu = static_cast<uint8_t>((cpu.cr0 & k_cr0_fpu_bits) | (cpu.cr4 & k_cr4_osfxsr_bit ? 1 : 0));
    return key;
}

// One guest instruction's host code, to find what faulted.
struct InsnMark {
    uint32_t begin = 0, end = 0; // offsets from the block's start
    uint16_t guest = 0;          // offset of the instruction from the block's RIP
    bool flags_in_slot = false;
};

struct Block {
    uint64_t gpa = 0;
    uint64_t rip = 0;
    ModeKey key;
    uint16_t guest_size = 0; // bytes of guest code
    uint16_t instructions = 0;
    uint64_t second_page = 0; // guest-physical page of an instruction that crosses, or k_no_page
    uint32_t code = 0;        // offset in the code memory
    uint32_t code_size = 0;
    bool global = false;     // CR3 loads keep the translation of its page (as of the last time it was found)
    Block* next = nullptr;   // in its bucket of the index
    bool dead = false;       // its guest code changed; not entered again
    uint32_t first_mark = 0; // in the cache's list of all marks, in order
    uint16_t mark_count = 0;
    Site* incoming = nullptr; // links to this block, by Site::next_incoming
};
constexpr uint64_t k_no_page = ~0ULL;

} // namespace coffer::vmm::soft
