// Holds the interfaces' headers to being complete in themselves.
#include "devices/core/backends.hpp"
#include "devices/core/bus.hpp"
#include "devices/core/device.hpp"
#include "devices/core/guest_memory.hpp"
#include "devices/core/irq.hpp"
#include "devices/core/scheduler.hpp"

namespace coffer::devices {
template class Bus<GuestPhysAddr, MmioDevice>;
template class Bus<IoPort, PioDevice>;
}  // namespace coffer::devices
