// One vCPU of the software backend: the loop that finds translated blocks, enters them, does what they leave for, and
// delivers faults and interrupts between them.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>

#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/soft/translate/code_cache.hpp"
#include "vmm/accel/soft/translate/host_faults.hpp"
#include "vmm/accel/soft/translate/interpreter.hpp"

namespace coffer::vmm::soft {

// For debugging: called before each block (with links off, so really each) and each interpreted instruction.
using BlockTrace = std::function<void(Cpu const&)>;

class SoftVcpu final : public Vcpu, public devices::CpuSignals {
public:
    static Result<std::unique_ptr<SoftVcpu>> create(unsigned index, GuestMemoryMap& memory, GuestIo& io,
                                                    devices::CpuInterrupts* interrupts, uint64_t tsc_hz);
    ~SoftVcpu() override;

    Result<VcpuExit> run() override;
    void kick() noexcept override;
    Result<CpuState> get_state() override;
    Result<void> set_state(CpuState const& state) override;
    Result<void> reset() override;
    VcpuStatistics statistics() const override;

    // CpuSignals: any thread.
    void interrupt_raised() noexcept override;
    void nmi() noexcept override;
    void init() noexcept override;
    void startup(uint8_t vector) noexcept override;

    // Any thread.
    void memory_written(uint64_t gpa, size_t size) noexcept { m_cache->memory_written(gpa, size); }
    void memory_map_changed(uint64_t gpa, size_t size) noexcept;
    // Any thread but the vCPU's, and not under a lock that a device may want: returns when no store that was let
    // through before can follow any more without being noted in the log of stores.
    void drop_write_tags();

    // With the vCPU stopped.
    void set_trace(BlockTrace trace) { m_trace = std::move(trace); }
    Cpu& cpu() noexcept { return m_frame->cpu; }
    CodeCache& cache() noexcept { return *m_cache; }

private:
    SoftVcpu(GuardedMemory memory, std::unique_ptr<NativeStep> native);

    enum class Next : uint8_t { Dispatch, Enter };

    Result<VcpuExit> run_until_exit();
    void drop_wanted_write_tags() noexcept;
    // One round. Nothing: go on.
    std::optional<VcpuExit> attend();
    bool deliver_pending();
    bool something_pending() const;
    void wait();
    void dispatch();
    void interpret();
    void enter(uint8_t const* code);
    Next leave();
    Next leave_link(Site& site);
    Next leave_instruction(Site& site);
    void leave_host_fault();
    Decoded const& decoded(Site const& site);
    void finish(Step step);
    void raise_attention(uint32_t bits) noexcept;
    void apply_init() noexcept;

    GuardedMemory m_memory;
    Frame* m_frame;
    std::unique_ptr<CodeCache> m_cache;
    std::unique_ptr<NativeStep> m_native;
    Interpreter m_interpreter;
    HostFaultTarget m_fault_target;
    BlockTrace m_trace;
    // Instructions that C++ executed lately.
    struct Known {
        Site const* site = nullptr;
        uint64_t flushes = 0; // sites are new after each
        Decoded decoded{};
    };
    std::vector<Known> m_known{1024};

    CpuActivity m_activity = CpuActivity::Running;
    bool m_nmi_pending = false;
    bool m_shutdown = false;
    std::atomic<bool> m_waiting{false};

    std::mutex m_run_mutex;
    std::condition_variable m_run_changed;
    bool m_in_run = false;       // under m_run_mutex, as the next two
    uint64_t m_drops_wanted = 0; // of write tags
    uint64_t m_drops_done = 0;

    std::atomic<uint32_t> m_startup_vector{0};
    uint8_t const* m_next_entry = nullptr;

    struct Counts {
        uint64_t entries = 0, links = 0, indirect = 0, polls = 0, accesses = 0, system = 0, faults = 0, interrupts = 0,
                 interpreted = 0, halts = 0, host_faults = 0;
    } m_counts;
};

} // namespace coffer::vmm::soft
