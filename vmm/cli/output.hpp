// Files that verbs write for their user.
#pragma once

#include <string>
#include <string_view>

#include "base/result.hpp"

namespace coffer::cli {

// Into a file, which appears whole or not at all and which anybody may read, or on standard output where there is no
// path. Gives the exit code of success.
Result<int> write_or_print(std::string const& path, std::string_view text);

} // namespace coffer::cli
