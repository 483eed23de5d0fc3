// Defaults of the interfaces; and holds their headers to being complete in themselves.
#include "devices/core/backends.hpp"

#include <algorithm>

#include "devices/core/bus.hpp"
#include "devices/core/device.hpp"
#include "devices/core/guest_memory.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {

Result<void> BlockBackend::write_zeroes(uint64_t offset, uint64_t size) {
    alignas(4096) static constexpr std::byte k_zeroes[64 * 1024]{};
    while (size > 0) {
        uint64_t piece = std::min<uint64_t>(size, sizeof k_zeroes);
        TRY(write(offset, Bytes(k_zeroes).first(piece)));
        offset += piece;
        size -= piece;
    }
    return {};
}

Result<void> BlockBackend::discard(uint64_t, uint64_t) {
    return {};
}

template class Bus<GuestPhysAddr, MmioDevice>;
template class Bus<IoPort, PioDevice>;
} // namespace coffer::devices
