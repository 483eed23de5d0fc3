// The lines that refuse a home.
#pragma once

#include <filesystem>
#include <string_view>

#include "base/result.hpp"

namespace coffer::vmm {

// "PATH: WHAT: it was changed or damaged. Nothing was overwritten; put back an intact copy of the whole home".
Error damaged(std::filesystem::path const& path, std::string_view what);

} // namespace coffer::vmm
