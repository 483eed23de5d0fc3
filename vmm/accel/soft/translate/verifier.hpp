// The last line of defence: emitted code is decoded again, by rules of its own, before it can run.
//
// Accepted are: the templates of scaffolding (the TLB check, the flag moves, the jump cache, exits with a known Site);
// loads and stores of the state's slots that emitted code may use; and instructions that the allow-list calls plain,
// which neither name RSP nor a segment nor read r14 once it is a host address, and whose memory operand, if any, is
// [r14] right behind a check that covers its size and its direction, with nothing in between that could change r14 or
// be jumped to. Jumps stay within the block, on instruction boundaries; the end cannot be fallen through.
#pragma once

#include <optional>
#include <span>

#include "vmm/accel/soft/translate/block.hpp"

namespace coffer::vmm::soft {

// Nothing, or what is wrong, and where.
struct Rejection {
    size_t offset;
    char const* reason;
};

// `sites` are those that the block may leave with.
std::optional<Rejection> verify_block(std::span<uint8_t const> code, bool user, std::span<Site* const> sites);

// Code for NativeStep: one plain instruction with its operand of `operand_size` bytes at [r14], then the exit.
struct StepLayout {
    int32_t spare; // 16 bytes
    int32_t exit;
};
std::optional<Rejection> verify_step(std::span<uint8_t const> code, StepLayout layout, size_t operand_size);

// Ends the process with a line that says what was refused.
[[noreturn]] void reject(std::span<uint8_t const> code, Rejection const& rejection) noexcept;

} // namespace coffer::vmm::soft
