// Physical region pages: where a command's data lies in guest memory (NVMe 1.4, 4.3). Thread-safe; input is hostile.
#pragma once

#include <vector>

#include "devices/core/guest_memory.hpp"
#include "devices/storage/nvme_spec.hpp"

namespace coffer::devices::nvme {

// A contiguous piece of guest memory.
struct Extent {
    GuestPhysAddr first;
    size_t size = 0;
};

// The extents of `length` bytes (1 to k_max_transfer), adjoining pages joined. Lists are read once.
Status resolve_prps(GuestMemory const& memory, uint64_t prp1, uint64_t prp2, size_t length, std::vector<Extent>& to);

// DMA between a buffer and extents; false where they leave RAM (what came before is done).
bool copy_to_guest(GuestMemory& memory, std::vector<Extent> const& extents, Bytes from);
bool copy_from_guest(GuestMemory const& memory, std::vector<Extent> const& extents, MutBytes to);

} // namespace coffer::devices::nvme
