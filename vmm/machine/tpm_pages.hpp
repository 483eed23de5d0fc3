// The TPM's CRB interface on a partition. Where the backend has event channels, which is where leaving a vCPU is dear,
// the registers and the buffer are memory that the guest reaches without leaving it, and two of the six writes with
// which a driver sends a command are doorbells. Linux' tpm_crb goes idle after every command, which may be looked at
// later, and withdraws a cancel before every command, which nobody needs to be told. Elsewhere the device sees all.
#pragma once

#include <memory>

#include "base/file.hpp"
#include "devices/tpm/crb.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/memory/guest_ram.hpp"

namespace coffer::vmm {

class TpmPages {
public:
    // The caller attaches device() to its bus at `address`, crb::k_window_size bytes. All that is given outlives this.
    static Result<std::unique_ptr<TpmPages>> create(Partition& partition, devices::Scheduler& scheduler,
                                                    devices::TpmBackend& tpm, GuestPhysAddr address);
    ~TpmPages(); // with the vCPUs stopped
    TpmPages(TpmPages const&) = delete;
    TpmPages& operator=(TpmPages const&) = delete;

    devices::TpmCrb& device() noexcept { return *m_device; }

private:
    TpmPages(Partition& partition, devices::Scheduler& scheduler, GuestPhysAddr address)
        : m_partition(partition), m_scheduler(scheduler), m_address(address) {}
    Result<void> attach_doorbells(EventChannels& channels);
    Doorbell doorbell(devices::crb::Register name, uint64_t value) const noexcept;

    Partition& m_partition;
    devices::Scheduler& m_scheduler;
    GuestPhysAddr m_address;
    HostMapping m_registers; // mapped at m_address, and m_buffer behind it, where the backend has event channels
    HostMapping m_buffer;
    UniqueFd m_idle;      // goIdle was written
    UniqueFd m_no_cancel; // nobody reads it
    std::unique_ptr<devices::TpmCrb> m_device;
};

} // namespace coffer::vmm
