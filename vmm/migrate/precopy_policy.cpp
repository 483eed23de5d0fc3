#include "vmm/migrate/precopy_policy.hpp"

#include <algorithm>

namespace coffer::vmm {

namespace {

constexpr size_t k_rate_rounds = 4;           // the best of the last ones is what the path can do
constexpr uint64_t k_rate_bytes = 256 * 1024; // a round of fewer says little about the path
constexpr uint64_t k_sent_page = 4096 + 16;   // with its share of a batch's head
constexpr unsigned k_first_throttle = 20;     // percent
constexpr unsigned k_throttle_step = 20;
constexpr size_t k_rounds_without_progress = 2; // before the guest is held back (more)

// Bytes a second; 0 where no round says anything.
double sending_rate(std::span<PrecopyRound const> rounds) {
    double best = 0;
    auto rate_of = [](RoundReport const& report) {
        return static_cast<double>(report.bytes) * static_cast<double>(k_ns_per_s) /
               static_cast<double>(std::max<Nanoseconds>(report.duration, 1));
    };
    for (auto const& round : rounds.last(std::min(rounds.size(), k_rate_rounds)))
        if (round.report.bytes >= k_rate_bytes) best = std::max(best, rate_of(round.report));
    if (best > 0) return best;
    for (auto const& round : rounds) best = std::max(best, rate_of(round.report));
    return best;
}

uint64_t bytes_left(PrecopyRound const& round) {
    return round.report.remaining * k_sent_page + round.disk_bytes;
}

Nanoseconds time_for(uint64_t bytes, std::span<PrecopyRound const> rounds) {
    if (bytes == 0) return 0;
    double const rate = sending_rate(rounds);
    constexpr double forever = 3600.0 * static_cast<double>(k_ns_per_s);
    if (rate <= 0) return static_cast<Nanoseconds>(forever);
    double const time = static_cast<double>(bytes) / rate * static_cast<double>(k_ns_per_s);
    return static_cast<Nanoseconds>(std::min(time, forever));
}

// A round that left at least three quarters of what the one before it had left.
size_t rounds_without_progress(std::span<PrecopyRound const> rounds) {
    unsigned const throttle = rounds.back().throttle;
    size_t count = 0;
    for (size_t i = rounds.size(); i-- > 1;) {
        if (rounds[i].throttle != throttle) break;
        if (bytes_left(rounds[i]) < bytes_left(rounds[i - 1]) / 4 * 3) break;
        ++count;
    }
    return count;
}

} // namespace

PrecopyDecision decide_precopy(PrecopyGoals const& goals, std::span<PrecopyRound const> rounds) {
    if (rounds.empty()) return {.next = PrecopyNext::Round, .reason = "first round"};
    auto const& last = rounds.back();
    PrecopyDecision decision;
    decision.throttle = last.throttle;
    decision.expected_downtime = time_for(bytes_left(last), rounds);
    if (decision.expected_downtime <= goals.downtime) {
        decision.next = PrecopyNext::SwitchOver;
        decision.reason = "little is left";
        return decision;
    }
    bool const stuck = rounds_without_progress(rounds) >= k_rounds_without_progress;
    bool const last_round = rounds.size() >= goals.max_rounds;
    if (last_round || (stuck && last.throttle >= goals.max_throttle)) {
        bool const bearable = decision.expected_downtime <= goals.downtime_limit;
        decision.next = bearable ? PrecopyNext::SwitchOver : PrecopyNext::GiveUp;
        decision.reason = last_round ? "no round is left" : "more rounds do not help";
        return decision;
    }
    decision.next = PrecopyNext::Round;
    decision.reason = "another round";
    if (stuck) {
        unsigned const wish = last.throttle == 0 ? k_first_throttle : last.throttle + k_throttle_step;
        decision.throttle = std::min(wish, goals.max_throttle);
        decision.reason = "the guest is held back";
    }
    return decision;
}

} // namespace coffer::vmm
