// Words and forms that several verbs print.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "base/bytes.hpp"
#include "keyprovider/provider_info.hpp"

namespace coffer::cli {

// What a provider without a passphrase means, as create, show and `provider add` say it.
std::string unprotected_provider_warning(std::string_view provider_name);

// What a provider whose newest key is in no backup means; of a ProviderInfo that lacks_backup().
std::string missing_backup_warning(ProviderInfo const& info);

// "1 GiB", "512 MiB", "540672 bytes": the largest unit that is exact.
std::string format_size(uint64_t bytes);
// Local time, "2026-11-20 09:30:00".
std::string format_time(int64_t seconds);

// "4 s", "3 min 4 s", "2 h 3 min", "5 d 2 h": the two largest units.
std::string format_span(uint64_t seconds);

// Two lower-case digits a byte.
std::string format_hex(Bytes bytes);

// Indented; bytes that are no UTF-8 (a provider's name is free text) are replaced.
std::string dump(nlohmann::json const& json);

} // namespace coffer::cli
