// Which of the guest's arithmetic flags matter where, within one block.
#pragma once

#include <cstdint>
#include <span>

#include "vmm/accel/soft/translate/decode.hpp"

namespace coffer::vmm::soft {

constexpr uint32_t k_arithmetic_flags = 0x8D5; // CF, PF, AF, ZF, SF, OF

// Flags that the instruction reads, and those that it always overwrites. Flags that the manuals call undefined, and
// those of shifts by a count that may be 0, are neither.
struct FlagUse {
    uint32_t reads = 0;
    uint32_t kills = 0;
    bool touches = false; // may change some
    bool shows = false;   // may fault or leave: the flags before it are seen by the guest's handler
};
FlagUse flag_use(Decoded const& d) noexcept;

// live[i]: the flags whose values before instruction i matter. All matter behind the last, and where they show.
void compute_liveness(std::span<Decoded const> insns, std::span<FlagUse> uses, std::span<uint32_t> live) noexcept;

} // namespace coffer::vmm::soft
