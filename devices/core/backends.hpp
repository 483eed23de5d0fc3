// What devices need of the host, declared by the devices that use it.
#pragma once

#include <cstdint>
#include <functional>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::devices {

// Where bytes of a serial line or console port go to. Called under the device lock; must not block for long.
class ByteSink {
public:
    virtual ~ByteSink() = default;
    virtual void write(Bytes bytes) noexcept = 0;
};

// A block device's content. Called from the disk's worker thread; blocking is fine. Offsets and sizes are in bytes and
// multiples of 512, within size().
class BlockBackend {
public:
    virtual ~BlockBackend() = default;
    virtual uint64_t size() const noexcept = 0;
    virtual bool read_only() const noexcept = 0;
    virtual Result<void> read(uint64_t offset, MutBytes to) = 0;
    virtual Result<void> write(uint64_t offset, Bytes from) = 0;
    // After success all earlier writes are durable.
    virtual Result<void> flush() = 0;
    // By default writes zeroes, a piece at a time.
    virtual Result<void> write_zeroes(uint64_t offset, uint64_t size);
    // The guest no longer needs this content; afterwards it reads as before or as zeroes. By default does nothing.
    virtual Result<void> discard(uint64_t offset, uint64_t size);
};

// What the guest asks of the machine as a whole, by ACPI, the reset register, the keyboard controller or port 0xCF9.
// Any thread; returns at once, and the vCPUs stop soon after.
class MachineControl {
public:
    virtual ~MachineControl() = default;
    virtual void request_power_off() noexcept = 0;
    virtual void request_reset() noexcept = 0;
};

// Durable content of a small non-volatile memory (flash variables, TPM state): the home in production.
class NvStore {
public:
    virtual ~NvStore() = default;
    // After success `content` is durable and is what the next start loads; after an error the old content is.
    virtual Result<void> commit(Bytes content) = 0;
};

} // namespace coffer::devices
