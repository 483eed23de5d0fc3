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
//
// Pages. A driver looks at registers and fills buffers far more often than it asks for anything, and an access that
// leaves the guest can cost microseconds. With CrbPages the guest reads the registers from memory, which is kept up to
// date here, and has the buffer's own page as memory; only writes to the block come here. Three things follow: what the
// guest writes into the page is not seen, so a start is taken in Completed too; it shows in the block's data buffer,
// which edk2 uses, with the response; and while a command runs, the page is the guest's to spoil.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>

#include "base/strong.hpp"
#include "devices/core/device.hpp"
#include "devices/tpm/crb_spec.hpp"
#include "devices/tpm/tpm_thread.hpp"

namespace coffer::devices {

// Host memory, a page each, that the guest reaches by itself; it outlives the device.
struct CrbPages {
    MutBytes registers; // read-only to the guest, at the block's address
    MutBytes buffer;    // the guest's to write, at crb::k_buffer_page
};

class TpmCrb final : public Device, public MmioDevice {
public:
    // `address` is where the machine attaches crb::k_window_size bytes: the registers tell the guest. The backend and
    // the scheduler outlive the device, and the backend is its alone. Powers the TPM on with reset().
    static Result<std::unique_ptr<TpmCrb>> create(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address,
                                                  std::optional<CrbPages> pages = {});

    // Where writes of goIdle do not come here: `asked` says, once each, that there was one, and is asked before every
    // access. The machine calls look() when there is one and the guest does nothing else.
    void set_idle_doorbell(std::function<bool()> asked) { m_idle_asked = std::move(asked); }
    void look();

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
    TpmCrb(TpmBackend& backend, Scheduler& scheduler, GuestPhysAddr address, std::optional<CrbPages> pages);

    uint32_t read_register(uint64_t offset) const noexcept;
    void write_register(uint64_t offset, uint32_t value);
    void collect();
    void start();
    void cancel();
    void go_idle();
    void write_block(uint64_t offset, Bytes from);
    void show_register(crb::Register name, uint32_t value) noexcept;
    void show() noexcept;
    void show_response(Bytes response) noexcept;
    void fill_buffer(size_t at, Bytes content) noexcept;

    TpmBackend& m_backend;
    std::optional<CrbPages> m_pages;
    GuestPhysAddr m_buffer_address;
    std::function<bool()> m_idle_asked;

    bool m_granted = false;
    crb::Phase m_phase = crb::Phase::Idle;
    bool m_cancel = false;
    std::array<std::byte, crb::k_buffer_size> m_own_buffer{};
    MutBytes m_buffer; // the first crb::k_buffer_size bytes of m_pages->buffer, or m_own_buffer

    std::atomic<bool> m_wait{false}; // a command was started and nobody has waited for it yet
    TpmThread m_thread;
};

} // namespace coffer::devices
