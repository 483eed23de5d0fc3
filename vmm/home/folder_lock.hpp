// One process at a time in a folder of small files.
#pragma once

#include <filesystem>

#include "base/file.hpp"

namespace coffer::vmm {

// Makes the folder where it is not there, and waits until no other process holds its file `lock`. Held as long as the
// descriptor is open. Any thread; threads of one process exclude each other, too.
Result<UniqueFd> lock_folder(std::filesystem::path const& folder);

} // namespace coffer::vmm
