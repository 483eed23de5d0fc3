// Host time in nanoseconds. Thread-safe.
#pragma once

#include <cstdint>

namespace coffer {

using Nanoseconds = int64_t;  // a span or a point of CLOCK_MONOTONIC

constexpr Nanoseconds k_ns_per_us = 1'000;
constexpr Nanoseconds k_ns_per_ms = 1'000'000;
constexpr Nanoseconds k_ns_per_s = 1'000'000'000;

Nanoseconds monotonic_now() noexcept;
// Seconds since 1970-01-01 UTC.
int64_t wall_clock_seconds() noexcept;

}  // namespace coffer
