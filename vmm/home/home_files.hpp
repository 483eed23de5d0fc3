// The files that a home consists of, as they lie in its folder.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace coffer::vmm {

struct HomeFileOnDisk {
    std::string name;
    uint64_t size = 0; // bytes
};

// All but the lock and what is in the making, sorted by name. InvalidArgument where something else is among them, which
// no home has.
Result<std::vector<HomeFileOnDisk>> list_home_files(std::filesystem::path const& folder);

} // namespace coffer::vmm
