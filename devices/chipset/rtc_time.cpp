#include "devices/chipset/rtc_time.hpp"

#include <algorithm>
#include <chrono>
#include <optional>

namespace coffer::devices::rtc {

namespace {

using namespace std::chrono;

constexpr int64_t k_day = 86'400;
constexpr int64_t k_first = sys_seconds(sys_days(year(0) / 1 / 1)).time_since_epoch().count();
constexpr int64_t k_last = sys_seconds(sys_days(year(9999) / 12 / 31)).time_since_epoch().count() + k_day - 1;

uint8_t encode(unsigned value, Format format) {
    return static_cast<uint8_t>(format.binary ? value : (value / 10 << 4) + value % 10);
}
unsigned decode(uint8_t value, Format format) {
    return format.binary ? value : (value >> 4) * 10U + (value & 0xFU);
}

uint8_t encode_hour(unsigned hour, Format format) {
    if (format.hours24) return encode(hour, format);
    return static_cast<uint8_t>(encode(hour % 12 == 0 ? 12 : hour % 12, format) | (hour >= 12 ? k_hour_pm : 0));
}
unsigned decode_hour(uint8_t value, Format format) {
    if (format.hours24) return decode(value, format);
    unsigned hour = decode(value & static_cast<uint8_t>(~k_hour_pm), format) % 12;
    return hour + (value & k_hour_pm ? 12 : 0);
}

// Nothing: any value matches.
std::optional<unsigned> alarm_byte(uint8_t value, bool is_hour, Format format) {
    if ((value & k_dont_care) == k_dont_care) return std::nullopt;
    return is_hour ? decode_hour(value, format) : decode(value, format);
}

} // namespace

void store_time(Bank& bank, int64_t seconds, Format format) noexcept {
    seconds = std::clamp(seconds, k_first, k_last);
    sys_seconds time{std::chrono::seconds(seconds)};
    auto day = floor<days>(time);
    year_month_day date(day);
    auto of_day = static_cast<unsigned>((time - day).count());
    auto full_year = static_cast<unsigned>(static_cast<int>(date.year()));
    bank[SECONDS] = encode(of_day % 60, format);
    bank[MINUTES] = encode(of_day / 60 % 60, format);
    bank[HOURS] = encode_hour(of_day / 3600, format);
    bank[DAY_OF_WEEK] = encode(weekday(day).c_encoding() + 1, format);
    bank[DAY_OF_MONTH] = encode(static_cast<unsigned>(date.day()), format);
    bank[MONTH] = encode(static_cast<unsigned>(date.month()), format);
    bank[YEAR] = encode(full_year % 100, format);
    bank[CENTURY] = encode(full_year / 100, format);
}

int64_t load_time(Bank const& bank, Format format) noexcept {
    unsigned full_year = std::min(decode(bank[CENTURY], format), 99U) * 100 + std::min(decode(bank[YEAR], format), 99U);
    year_month_day date(year(static_cast<int>(full_year)), month(std::clamp(decode(bank[MONTH], format), 1U, 12U)),
                        day(std::clamp(decode(bank[DAY_OF_MONTH], format), 1U, 31U)));
    int64_t start = sys_seconds(sys_days(date)).time_since_epoch().count();
    int64_t of_day = int64_t{std::min(decode_hour(bank[HOURS], format), 23U)} * 3600 +
                     std::min(decode(bank[MINUTES], format), 59U) * 60 + std::min(decode(bank[SECONDS], format), 59U);
    return std::clamp(start + of_day, k_first, k_last);
}

int64_t next_alarm(Bank const& bank, int64_t after, Format format) noexcept {
    auto hour = alarm_byte(bank[HOURS_ALARM], true, format);
    auto minute = alarm_byte(bank[MINUTES_ALARM], false, format);
    auto second = alarm_byte(bank[SECONDS_ALARM], false, format);
    // One step an hour, a minute or a second that does not match: at most some 200 in a day.
    int64_t time = after + 1;
    while (time <= after + k_day) {
        int64_t of_day = ((time % k_day) + k_day) % k_day;
        if (hour && of_day / 3600 != *hour)
            time += 3600 - of_day % 3600;
        else if (minute && of_day / 60 % 60 != *minute)
            time += 60 - of_day % 60;
        else if (second && of_day % 60 != *second)
            time += 1;
        else
            return time;
    }
    return -1;
}

} // namespace coffer::devices::rtc
