// How much memory the VMM itself takes.
#pragma once

#include <cstdint>
#include <optional>

#include "vmm/memory/guest_ram.hpp"

namespace coffer::vmm {

// Resident bytes of this process without the guest's RAM; nothing where /proc does not say.
std::optional<uint64_t> own_memory(GuestRam const& ram);

} // namespace coffer::vmm
