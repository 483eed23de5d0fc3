// The TPM's command response buffer interface (CRB), locality 0: crb_spec.hpp has the registers.
//
// Commands run on a TpmThread. The guest polls CTRL_START; a look sees a finished command at once, whether or not the
// I/O thread has had a turn. The write that starts a command is followed by wait_after_write(), so that a short one is
// finished before the guest looks for the first time.
//
// The state machine: a command starts from Ready alone; the buffer takes writes in Ready, and in Completed, where the
// first write drops the response and leads to Ready. Going Idle, and relinquishing the locality, while a command runs
// cancels the command and drops its response. PTP leaves the ways from Completed to Ready (by cmdReady, by writing) to
// TPMs with CapCRBIdleBypass, which this one does not claim; Linux' tpm_crb nevertheless writes one command after the
// other without going Idle, so they are taken here.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "base/strong.hpp"
#include "devices/core/device.hpp"
#include "devices/tpm/crb_spec.hpp"
#include "devices/tpm/tpm_thread.hpp"

namespace coffer::devices {

class TpmCrb final : public Device, public MmioDevice {
public:
    // `address` is where the machine attaches the block of crb::k_block_size bytes: the registers tell the guest. The
    // backend and the scheduler outlive the device, and the backend is its alone. Powers the TPM on with reset().
    static Result<std::unique_ptr<TpmCrb>> create(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address);

    std::string_view unit_name() const noexcept override { return "tpm-crb"; }
    // Both kinds are _TPM_Init: the platform's reset line reaches the TPM. Does not wait for the TPM.
    void reset(ResetKind kind) noexcept override;
    // Waits for a running command; Timeout where it takes longer than half a minute.
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;
    void wait_after_write() noexcept override;

private:
    TpmCrb(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address);

    uint32_t read_register(uint64_t offset) const noexcept;
    void write_register(uint64_t offset, uint32_t value);
    void collect();
    void start();
    void go_idle();

    TpmBackend& m_backend;
    GuestPhysAddr m_buffer_address;

    bool m_granted = false;
    crb::Phase m_phase = crb::Phase::Idle;
    bool m_cancel = false;
    std::array<std::byte, crb::k_buffer_size> m_buffer{};

    std::atomic<bool> m_wait{false}; // a command was started and nobody has waited for it yet
    TpmThread m_thread;
};

} // namespace coffer::devices
