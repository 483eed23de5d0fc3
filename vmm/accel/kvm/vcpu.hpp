// One vCPU of a KVM partition.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <string>

#include <sys/types.h>

#include "vmm/accel/accelerator.hpp"
#include "vmm/accel/kvm/completion.hpp"
#include "vmm/accel/kvm/kvm_api.hpp"
#include "vmm/accel/kvm/state.hpp"

namespace coffer::vmm::kvm {

class MemorySlots;

// The kvm_run area that KVM shares with user space for one vCPU.
class RunArea {
public:
    static Result<RunArea> map(Handle const& vcpu, size_t size);
    RunArea(RunArea&& other) noexcept;
    RunArea& operator=(RunArea&&) = delete;
    ~RunArea();

    kvm_run* operator->() const noexcept { return m_run; }
    kvm_run& operator*() const noexcept { return *m_run; }
    // `size` bytes at `offset`, checked to lie in the area.
    MutBytes bytes(uint64_t offset, size_t size) const;
    // KVM reads it on entry; any thread writes it.
    void set_immediate_exit(bool on) noexcept {
        __atomic_store_n(&m_run->immediate_exit, on ? 1 : 0, __ATOMIC_SEQ_CST);
    }

private:
    RunArea(kvm_run* run, size_t size) : m_run(run), m_size(size) {}
    kvm_run* m_run;
    size_t m_size;
};

// What a partition gives each of its vCPUs. All of it outlives the vCPU.
struct VcpuSurroundings {
    MemorySlots& memory;
    GuestIo& io;
    // Guest TSC - host TSC, kept by vCPU 0.
    std::atomic<int64_t>& tsc_offset;
    CompletionContext completion;
};

class KvmVcpu final : public Vcpu {
public:
    // `vcpu` has its CPUID, initial MSRs and MP state.
    static Result<std::unique_ptr<KvmVcpu>> create(Handle vcpu, unsigned index, size_t run_area_size,
                                                   StateLayout layout, VcpuSurroundings const& surroundings);

    Result<VcpuExit> run() override;
    void kick() noexcept override;
    Result<CpuState> get_state() override;
    Result<void> set_state(CpuState const& state) override;
    Result<void> reset() override;
    VcpuStatistics statistics() const override;

    Handle const& handle() const noexcept { return m_vcpu; }

private:
    KvmVcpu(Handle vcpu, unsigned index, RunArea run, StateLayout layout, VcpuSurroundings const& surroundings);

    struct Outcome {
        std::optional<VcpuExit> exit; // nothing: go on
    };
    Result<Outcome> handle_exit();
    void handle_pio();
    void handle_mmio();
    Result<Outcome> handle_internal_error();
    Result<Outcome> complete_instruction();
    Result<void> update_tsc_offset();
    // True once: a kick has been asked for.
    bool take_kick() noexcept;
    std::string where() const;

    Handle m_vcpu;
    unsigned m_index;
    RunArea m_run;
    StateLayout m_layout;
    GuestIo& m_io;
    std::atomic<int64_t>& m_tsc_offset;
    CpuState m_power_on; // as KVM and our initial MSRs made it

    std::atomic<bool> m_kicked = false;
    std::atomic<pid_t> m_thread = 0; // in KVM_RUN or about to be, else 0
    bool m_io_unfinished = false;    // KVM completes the access on the next entry (api.rst 5)

    std::array<uint64_t, 64> m_exits{}; // by exit reason; those above share the last
    uint64_t m_interrupted = 0;
    uint64_t m_completed = 0;
    // Made beforehand, while memory that can be executed may still be had; a failure counts only when it is needed.
    Result<std::unique_ptr<InstructionCompletion>> m_completion{nullptr};
};

// The signal that takes a vCPU's thread out of KVM_RUN; its handler does nothing. Idempotent.
Result<void> install_kick_signal();
int kick_signal() noexcept;

} // namespace coffer::vmm::kvm
