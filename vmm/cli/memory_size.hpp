// Sizes as users write them.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.hpp"

namespace coffer::cli {

// A whole number with a unit, K, M, G or T for powers of 1024 ("512M", "4G", "1GiB", either case), in bytes.
// InvalidArgument for anything else, a plain number included: one could not tell bytes from megabytes.
Result<uint64_t> parse_memory_size(std::string_view text);

} // namespace coffer::cli
