#include "vmm/cli/backup_reminder.hpp"

#include <charconv>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "base/log.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/cli/wording.hpp"
#include "vmm/home/home_admin.hpp"

namespace coffer::cli {

namespace {

constexpr int64_t k_day = 24 * 60 * 60;
constexpr size_t k_max_stamp = 32;

// Beside the host's records of homes, whose names begin with a letter or digit.
std::filesystem::path stamp_of(vmm::HomeRoot const& root, Uuid const& provider) {
    return root.state / fmt::format(".backup-reminder.{}", provider.to_string());
}

// When it was last said, in seconds since 1970-01-01 UTC; long ago where nothing readable says when.
int64_t last_said(std::filesystem::path const& stamp) {
    auto content = read_file(stamp, k_max_stamp);
    if (!content) return 0;
    std::string text;
    for (std::byte b : *content) text += static_cast<char>(b);
    int64_t when = 0;
    auto parsed = std::from_chars(text.data(), text.data() + text.size(), when);
    return parsed.ec == std::errc() ? when : 0;
}

void remind(vmm::HomeRoot const& root, ProviderInfo const& info) {
    if (!info.lacks_backup()) return;
    auto const stamp = stamp_of(root, info.id);
    int64_t const now = wall_clock_seconds();
    int64_t const said = last_said(stamp);
    if (said <= now && now - said < k_day) return; // a time to come is of a clock that was wrong
    log::warning("{}", missing_backup_warning(info));
    auto written = make_folders(root.state);
    if (written) written = replace_file(stamp, as_bytes(fmt::format("{}\n", now)));
    if (!written) log::info("it will be said again next time: {}", written.error().message());
}

} // namespace

void remind_of_backups(vmm::HomeRoot const& root) {
    auto providers = ProviderRegistry(root.providers()).list();
    if (!providers) return; // whoever needs them says why
    for (auto const& info : *providers) remind(root, info);
}

void remind_of_backup(vmm::HomeLocation const& location) {
    auto summary = vmm::summarize_home(location);
    if (!summary || !summary->encrypted) return; // a home that does not open is reported where it is opened
    if (auto info = ProviderRegistry(location.root.providers()).find(summary->provider)) remind(location.root, *info);
}

} // namespace coffer::cli
