// The TPM's FIFO interface (TIS) with five localities: tis_spec.hpp has the registers.
//
// Commands run on a TpmThread, as with TpmCrb. The interrupt line is optional; a platform without one polls.
//
// The state machine: commandReady leads from Idle to Ready, and from any other state, aborting what is under way,
// through Idle to Ready, because leaving Idle takes no time here. A change of locality aborts too, and leaves the TPM
// Idle.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <optional>

#include "devices/core/device.hpp"
#include "devices/core/irq.hpp"
#include "devices/tpm/tis_spec.hpp"
#include "devices/tpm/tpm_thread.hpp"

namespace coffer::devices {

class TpmTis final : public Device, public MmioDevice {
public:
    // The machine attaches tis::k_window_size bytes. Backend and scheduler outlive the device, and the backend is its
    // alone. Powers the TPM on with reset().
    static Result<std::unique_ptr<TpmTis>> create(TpmBackend& backend, Scheduler& scheduler, IrqLine irq = {},
                                                  tis::Generation generation = tis::Generation::Ptp);

    std::string_view unit_name() const noexcept override { return "tpm-tis"; }
    // Both kinds are _TPM_Init: the platform's reset line reaches the TPM. Does not wait for the TPM.
    void reset(ResetKind kind) noexcept override;
    // Waits for a running command; Timeout where it takes longer than half a minute.
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;
    void wait_after_write() noexcept override;

private:
    struct LocalityBlock {
        bool requested = false; // asked for the TPM while another locality had it
        bool seized = false;    // lost it to a higher one
        uint32_t int_enable = tis::k_int_low_level;
        uint32_t int_status = 0;
        uint8_t int_vector = 0;
    };

    TpmTis(TpmBackend& backend, Scheduler& scheduler, IrqLine irq, tis::Generation generation);

    std::byte read_byte(unsigned locality, uint64_t offset);
    uint8_t read_access(unsigned locality) const noexcept;
    uint32_t read_status(unsigned locality) const noexcept;
    void write_register(unsigned locality, uint64_t offset, uint32_t value, uint32_t mask);
    void write_access(unsigned locality, uint8_t value);
    void write_status(unsigned locality, uint32_t value);

    bool is_active(unsigned locality) const noexcept { return m_active == locality; }
    void activate(unsigned locality);
    void relinquish();
    void abort_command() noexcept;
    bool expects_more() const noexcept;
    std::byte pop() noexcept;
    void push(std::byte value);
    void make_ready();
    void start();
    void collect();
    void raise(uint32_t interrupts);
    void update_line();

    TpmBackend& m_backend;
    IrqLine m_irq;
    uint32_t m_interface_id;

    std::optional<unsigned> m_active;
    std::array<LocalityBlock, k_locality_count> m_localities;
    tis::Phase m_phase = tis::Phase::Idle;
    ByteVector m_fifo;        // the command as far as it came, or the response; at most tis::k_buffer_size bytes
    size_t m_read_offset = 0; // into the response
    bool m_line = false;

    std::atomic<bool> m_wait{false}; // a command was started and nobody has waited for it yet
    TpmThread m_thread;
};

} // namespace coffer::devices
