// An NVMe 1.4 controller with one namespace of 512-byte blocks (NVM Express Base Specification 1.4).
//
// Registers and queues are handled under the device lock; what needs the disk goes to a worker thread of its own
// (nvme_io.hpp) and comes back by Scheduler::post. The volatile write cache is the backend's: Flush, FUA and a disabled
// write cache become BlockBackend::flush().
//
// A guest has at most as many commands under way as its submission queues have entries (1024 each), and a controller
// reset completes (CSTS.RDY 0) only when the worker no longer touches guest memory.
//
// Not emulated: SGLs, metadata and protection information, namespace management, firmware update, fused commands,
// controller memory buffer, subsystem reset, weighted arbitration, interrupt coalescing (the setting is stored), power
// states past 0, end-to-end and security commands.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "devices/core/scheduler.hpp"
#include "devices/pci/pci_function.hpp"
#include "devices/storage/nvme_io.hpp"
#include "devices/storage/nvme_spec.hpp"
#include "devices/storage/nvme_state.hpp"

namespace coffer::devices {

class NvmeController final : public PciFunction, public MmioDevice {
public:
    struct Config {
        std::string unit = "nvme.0";       // unit_name()
        std::string serial = "0";          // at most 20 printable ASCII characters
        std::array<std::byte, 16> nguid{}; // the namespace's; not zero
    };
    // The backend's size is a multiple of 512 and does not change.
    NvmeController(Config config, BlockBackend& backend, GuestMemory& memory, Scheduler& scheduler);
    ~NvmeController() override;

    std::string_view unit_name() const noexcept override { return m_settings.unit; }
    // Waits for the command at the disk, if there is one.
    void reset(ResetKind kind) noexcept override;
    Result<ByteVector> save() const override;
    Result<void> restore(Bytes state) override;

    // With the vCPUs stopped, under the device lock: waits until the disk has done everything, and takes its results.
    // To be called before save().
    void drain();

    // BAR 0.
    IoStatus mmio_read(uint64_t offset, MutBytes to) override;
    IoStatus mmio_write(uint64_t offset, Bytes from) override;

private:
    struct SubmissionQueue {
        bool valid = false;
        uint16_t size = 0;
        uint16_t head = 0;
        uint16_t tail = 0;
        uint16_t cq = 0;
        uint16_t in_flight = 0; // at the disk
        uint64_t base = 0;
        std::optional<uint16_t> deletion; // the Delete command's id, while commands are in flight
    };
    struct CompletionQueue {
        bool valid = false;
        bool interrupts = false;
        bool phase = true;
        uint16_t size = 0;
        uint16_t head = 0;
        uint16_t tail = 0;
        uint16_t vector = 0;
        uint64_t base = 0;
        std::deque<nvme::Completion> waiting;
    };
    // What a command's execution came to; nothing where it completes later.
    struct Outcome {
        nvme::Status status = nvme::Status::Success;
        uint32_t result = 0;
    };
    using MaybeOutcome = std::optional<Outcome>;

    void config_written(uint16_t offset, size_t size) noexcept override;
    uint32_t read_register(uint32_t offset) const noexcept;
    IoStatus write_register(uint32_t offset, uint32_t value);
    void write_doorbell(uint32_t index, uint32_t value);
    void write_configuration(uint32_t value);
    void enable();
    void begin_disable();
    void finish_disable() noexcept;
    void begin_shutdown();
    void clear_queues() noexcept;
    void fatal(std::string_view what) noexcept;
    bool running() const noexcept;

    void fetch(uint16_t id);
    void fetch_all();
    void execute(uint16_t sq, nvme::Command const& command);
    MaybeOutcome execute_io(uint16_t sq, nvme::Command const& command);
    Outcome check_transfer(nvme::Command const& command, nvme::IoRequest& request) const;
    void submit(uint16_t sq, nvme::IoRequest request);
    void complete(uint16_t sq, uint16_t command, Outcome outcome);
    void post(uint16_t cq, nvme::Completion completion);
    bool flush_waiting(uint16_t cq);
    void update_intx() noexcept;
    void take_results();
    void finish(nvme::IoResult const& result);
    void report_error_event(nvme::ErrorEvent event);
    void deliver_events();

    // nvme_admin.cpp
    MaybeOutcome execute_admin(nvme::Command const& command);
    Outcome create_cq(nvme::Command const& command);
    Outcome create_sq(nvme::Command const& command);
    Outcome delete_cq(nvme::Command const& command);
    MaybeOutcome delete_sq(nvme::Command const& command);
    Outcome identify(nvme::Command const& command);
    Outcome get_log_page(nvme::Command const& command);
    Outcome set_features(nvme::Command const& command);
    Outcome get_features(nvme::Command const& command);
    MaybeOutcome async_event(nvme::Command const& command);
    Outcome reply(nvme::Command const& command, Bytes data);
    ByteVector identify_controller() const;
    ByteVector identify_namespace() const;
    ByteVector smart_log() const;
    void reset_features() noexcept;
    void note_error(uint16_t sq, nvme::Command const& command, nvme::Status status) noexcept;

    void resume() noexcept;
    Result<void> check_state(NvmeState const& state) const;
    void take_registers(NvmeState const& state);

    Config m_settings;
    BlockBackend& m_backend;
    GuestMemory& m_memory;
    Scheduler& m_scheduler;

    // What saved state holds apart from the queues; counters are read blocks, written blocks, reads, writes.
    struct Registers {
        uint32_t intms = 0;
        uint32_t cc = 0;
        uint32_t csts = 0;
        uint32_t aqa = 0;
        uint64_t asq = 0;
        uint64_t acq = 0;
        std::array<uint32_t, 16> features{};
        std::array<uint32_t, nvme::k_vectors> vector_configuration{};
        std::vector<uint16_t> events;
        uint8_t events_pending = 0;
        bool events_masked = false;
        std::array<uint64_t, 4> counters{};
        uint64_t media_errors = 0;
        uint64_t error_count = 0;
        std::array<uint8_t, nvme::k_error_entry_size> last_error{};
    };

    Registers m_regs;
    std::array<SubmissionQueue, nvme::k_queues> m_sqs;
    std::array<CompletionQueue, nvme::k_queues> m_cqs;
    bool m_disabling = false; // CC.EN went to 0 while the worker was busy

    // Tasks posted by the worker outlive this object in the scheduler's queue; they hold a weak reference.
    std::shared_ptr<NvmeController*> m_self;
    nvme::IoWorker m_worker; // last: its thread ends first
};

} // namespace coffer::devices
