// When a live migration stops the guest: decided from what the rounds so far measured. Pure: no clock, no state.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/clock.hpp"
#include "vmm/migrate/memory_sender.hpp"

namespace coffer::vmm {

struct PrecopyGoals {
    Nanoseconds downtime = 30 * k_ns_per_ms;     // for what is left: switch over as soon as it is expected to be below
    Nanoseconds downtime_limit = 2 * k_ns_per_s; // where rounds do not help any more: switch over below, give up above
    uint32_t max_rounds = 40;
    unsigned max_throttle = 90; // percent of time that the guest may be held back; 0: never
};

enum class PrecopyNext : uint8_t {
    Round,
    SwitchOver,
    GiveUp, // the guest writes faster than memory is sent, and would stand longer than the limit
};

struct PrecopyDecision {
    PrecopyNext next = PrecopyNext::Round;
    unsigned throttle = 0;             // percent, for the next round
    Nanoseconds expected_downtime = 0; // of memory and disks, were the guest stopped now
    std::string_view reason;           // "first round", ..., for a log line
};

struct PrecopyRound {
    RoundReport report;
    unsigned throttle = 0;   // that was in force meanwhile
    uint64_t disk_bytes = 0; // of disks, left to be sent after the round
};

// `rounds` is all of them so far, oldest first; none: the first is to be sent.
PrecopyDecision decide_precopy(PrecopyGoals const& goals, std::span<PrecopyRound const> rounds);

} // namespace coffer::vmm
