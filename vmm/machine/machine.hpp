// One VM: a partition, its vCPU threads, the I/O loop and the platform's devices, from power-on to the end.
//
// Lifecycle: create, start, wait (on the owner's thread: it also carries out the guest's resets), close. stop() and the
// input functions may be called from any thread meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/result.hpp"
#include "devices/core/backends.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/machine/io_loop.hpp"
#include "vmm/machine/platform.hpp"
#include "vmm/machine/vcpu_threads.hpp"
#include "vmm/memory/guest_ram.hpp"

namespace coffer::vmm {

enum class MachineEnd : uint8_t {
    PowerOff, // the guest switched itself off
    Stopped,  // stop() was called
    Failed,   // failure() says why: a triple fault, an instruction that no backend can run, a host error
};

struct MachineStatistics {
    uint64_t completed_instructions = 0;
    std::map<std::string, uint64_t> exits_by_kind;
    uint32_t resets = 0;
    std::optional<uint64_t> own_memory; // resident bytes without the guest's RAM
};

class Machine final : private devices::MachineControl {
public:
    // The partition and all references of `config` outlive the machine.
    static Result<std::unique_ptr<Machine>> create(PlatformConfig config, std::unique_ptr<Partition> partition);
    ~Machine() override;

    void start();
    MachineEnd wait();
    std::optional<Error> const& failure() const noexcept { return m_failure; }
    // Any thread: wait() returns Stopped soon.
    void stop() noexcept;

    // After wait(): everything the guest was told is stored, is stored.
    Result<void> close();

    IoLoop& loop() noexcept { return *m_loop; }
    Platform& platform() noexcept { return *m_platform; }
    // After wait().
    MachineStatistics statistics() const;

private:
    explicit Machine(std::unique_ptr<Partition> partition) : m_partition(std::move(partition)) {}
    void request_power_off() noexcept override;
    void request_reset() noexcept override;
    void vcpu_ended(unsigned index, std::optional<Error> error);
    Result<void> carry_out_reset();
    void wake_owner() noexcept;

    // Destroyed last to first.
    std::unique_ptr<Partition> m_partition;
    std::unique_ptr<IoLoop> m_loop;
    std::unique_ptr<GuestRam> m_ram;
    std::unique_ptr<Platform> m_platform;
    std::unique_ptr<VcpuThreads> m_vcpus;

    std::mutex m_mutex;
    std::condition_variable m_changed;
    bool m_power_off = false;
    bool m_reset = false;
    bool m_stop = false;
    std::optional<Error> m_failure;
    uint32_t m_resets = 0;
};

} // namespace coffer::vmm
