// A device's way to the guest's RAM (DMA). Declared here by its users, implemented by vmm/memory.
#pragma once

#include <cstdint>

#include "base/bytes.hpp"
#include "base/strong.hpp"

namespace coffer::devices {

// Thread-safe. Addresses are hostile: an access that is not wholly in RAM is refused and changes nothing. As on a real
// machine, a guest that races its own DMA sees torn data, and never harms the host.
class GuestMemory {
public:
    virtual ~GuestMemory() = default;

    [[nodiscard]] virtual bool read(GuestPhysAddr from, MutBytes to) const noexcept = 0;
    // Tells the accelerator, so that translated code and dirty logs follow.
    [[nodiscard]] virtual bool write(GuestPhysAddr to, Bytes from) noexcept = 0;

    // For zero-copy I/O: the host memory behind a guest range that is contiguous RAM, or an empty span. After filling
    // one, call written(). The span stays valid while the VM runs.
    [[nodiscard]] virtual MutBytes span(GuestPhysAddr first, size_t size) noexcept = 0;
    virtual void written(GuestPhysAddr first, size_t size) noexcept = 0;
};

}  // namespace coffer::devices
