// What becomes of this process's memory on the host: whether it can be written to swap, and in which form.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace coffer::vmm {

// Nothing of this process is swapped out from here on: what is mapped now or later is locked when it is first touched
// (mlockall(2), MCL_ONFAULT), so that a guest takes no more memory than it uses. Unsupported where the kernel has no
// MCL_ONFAULT, Permission where RLIMIT_MEMLOCK is too small; the message names the limit and what it has to be for a
// guest of `guest_memory` bytes.
Result<void> lock_memory(uint64_t guest_memory);

// Where the kernel tells of swap; tests have their own.
struct SwapSources {
    std::filesystem::path swaps = "/proc/swaps";
    std::filesystem::path devices = "/sys/dev/block";
};

// Swap areas of the host from which memory could be read by who gets at the disk: all but those on dm-crypt, below
// whatever mappings, and on zram without a backing device. One whose medium is not known (a file on a file system
// without a block device of its own) counts as unprotected.
Result<std::vector<std::string>> unprotected_swaps(SwapSources const& sources = {});

} // namespace coffer::vmm
