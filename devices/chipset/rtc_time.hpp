// The calendar of the real-time clock: register bytes to seconds since 1970 and back, in BCD or binary, 12 or 24 hours.
#pragma once

#include <array>
#include <cstdint>

#include "devices/chipset/rtc_spec.hpp"

namespace coffer::devices::rtc {

struct Format {
    bool binary = false;
    bool hours24 = false;
    explicit Format(uint8_t register_b) : binary(register_b & B_BINARY), hours24(register_b & B_24H) {}
};

using Bank = std::array<uint8_t, k_bank_size>;

// Years 0 to 9999; a time outside is clamped.
void store_time(Bank& bank, int64_t seconds, Format format) noexcept;
// Bytes that are no date are taken as the nearest one.
int64_t load_time(Bank const& bank, Format format) noexcept;

// The first second after `after` at which the alarm bytes match; 0 seconds of a day never match where they cannot.
// Negative: never.
int64_t next_alarm(Bank const& bank, int64_t after, Format format) noexcept;

} // namespace coffer::devices::rtc
