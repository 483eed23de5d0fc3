#include "vmm/cli/wording.hpp"

#include <ctime>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace coffer::cli {

std::string unprotected_provider_warning(std::string_view provider_name) {
    return fmt::format("note: key provider '{}' has no passphrase, and its key lies on this disk: whoever copies the "
                       "disk can open the homes of its VMs",
                       provider_name);
}

std::string missing_backup_warning(ProviderInfo const& info) {
    return fmt::format("key provider '{}' was {}: if this disk is lost, so are the homes of its VMs, copies of "
                       "them elsewhere too. 'coffer provider backup' saves its keys",
                       info.name,
                       info.backed_up_version == 0 ? "never backed up" : "not backed up since it was rotated");
}

std::string format_size(uint64_t bytes) {
    struct Unit {
        unsigned shift;
        std::string_view name;
    };
    for (auto unit : {Unit{40, "TiB"}, Unit{30, "GiB"}, Unit{20, "MiB"}, Unit{10, "KiB"}})
        if (bytes != 0 && bytes % (uint64_t{1} << unit.shift) == 0)
            return fmt::format("{} {}", bytes >> unit.shift, unit.name);
    return fmt::format("{} bytes", bytes);
}

std::string format_time(int64_t seconds) {
    std::time_t const time = seconds;
    std::tm local{};
    char text[32] = {};
    if (!::localtime_r(&time, &local) || std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local) == 0)
        return fmt::format("{}", seconds);
    return text;
}

std::string format_span(uint64_t seconds) {
    constexpr uint64_t k_minute = 60;
    constexpr uint64_t k_hour = 60 * k_minute;
    constexpr uint64_t k_day = 24 * k_hour;
    if (seconds >= k_day) return fmt::format("{} d {} h", seconds / k_day, seconds % k_day / k_hour);
    if (seconds >= k_hour) return fmt::format("{} h {} min", seconds / k_hour, seconds % k_hour / k_minute);
    if (seconds >= k_minute) return fmt::format("{} min {} s", seconds / k_minute, seconds % k_minute);
    return fmt::format("{} s", seconds);
}

std::string format_hex(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(b));
    return text;
}

std::string dump(nlohmann::json const& json) {
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

} // namespace coffer::cli
