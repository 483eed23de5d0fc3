// What every emulated device is. A device does not know its own address: the machine attaches it to a bus.
//
// Thread rule: all calls into a device (register accesses, timer callbacks, backend callbacks) are made under the
// machine's device lock, so a device needs no lock of its own unless it starts a thread. A thread of a device's own
// comes back through Scheduler::post(), and never holds a lock across a guest-visible call.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::devices {

// What became of a guest's access. Anything but Ok is the guest's fault: a read gives all ones, a write is dropped, and
// neither ends the VM.
enum class IoStatus : uint8_t { Ok, NoSuchRegister, BadSize, Unaligned };

enum class ResetKind : uint8_t {
    Cold,  // power-on: everything takes its reset value
    Warm,  // reset line with power kept: what the specification calls sticky survives
};

class Device {
public:
    virtual ~Device() = default;

    // Stable for ever, written in snapshots: "pit", "nvme.0".
    virtual std::string_view unit_name() const noexcept = 0;
    virtual void reset(ResetKind kind) noexcept = 0;

    // The guest-visible state as tagged fields (base/tagged.hpp) of the device's own *State struct. Called with the
    // vCPUs stopped and the device drained.
    virtual Result<ByteVector> save() const = 0;
    // All or nothing: after an error the device is as it was. Input is hostile: every index and count is checked.
    virtual Result<void> restore(Bytes state) = 0;
};

// `offset` is from the start of the attached range, and the whole access lies in it. Sizes are not limited to powers of
// two: a device refuses (BadSize) those it does not take.
class MmioDevice {
public:
    virtual ~MmioDevice() = default;
    virtual IoStatus mmio_read(uint64_t offset, MutBytes to) = 0;
    virtual IoStatus mmio_write(uint64_t offset, Bytes from) = 0;

    // The one call that is made WITHOUT the device lock: the vCPU thread makes it after every mmio_write(), when it has
    // released the lock and before the guest goes on. A device whose write started work on another thread (the TPM)
    // waits here a bounded time, at most some hundred microseconds, so that the guest's first look at its status finds
    // short work done. Touches only what is safe from any thread; may be called for several vCPUs at once.
    virtual void wait_after_write() noexcept {}
};

class PioDevice {
public:
    virtual ~PioDevice() = default;
    virtual IoStatus pio_read(uint16_t offset, MutBytes to) = 0;
    virtual IoStatus pio_write(uint16_t offset, Bytes from) = 0;
};

}  // namespace coffer::devices
