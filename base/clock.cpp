#include "base/clock.hpp"

#include <ctime>

namespace coffer {

Nanoseconds monotonic_now() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<Nanoseconds>(now.tv_sec) * k_ns_per_s + now.tv_nsec;
}

int64_t wall_clock_seconds() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec;
}

}  // namespace coffer
