// One VM: a partition, its vCPU threads, the I/O loop and the platform's devices, from power-on to the end.
//
// Lifecycle: create, start, wait (on the owner's thread: it also carries out the guest's resets), close. stop() and the
// input functions may be called from any thread meanwhile.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "devices/core/backends.hpp"
#include "vmm/accel/accelerator.hpp"
#include "vmm/machine/io_loop.hpp"
#include "vmm/machine/platform.hpp"
#include "vmm/machine/vcpu_threads.hpp"
#include "vmm/memory/guest_ram.hpp"
#include "vmm/snapshot/machine_state.hpp"

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

// Code in flash does not change while a machine runs.
enum class WithFirmware : uint8_t { Yes, No };

class Machine final : private devices::MachineControl {
public:
    // All references of `config` outlive the machine. `ram`, where it is given, is of the configured size: one whose
    // content came before the machine (migration).
    static Result<std::unique_ptr<Machine>> create(PlatformConfig config, std::unique_ptr<Partition> partition,
                                                   std::unique_ptr<GuestRam> ram = nullptr);
    ~Machine() override;

    void start();
    MachineEnd wait();
    std::optional<Error> const& failure() const noexcept { return m_failure; }
    // Any thread: wait() returns Stopped soon.
    void stop() noexcept;

    // Any thread: `task` runs soon on the owner's thread, within wait(), with the vCPUs stopped and time standing
    // still; then the machine goes on, unless the task called stop(). A machine that has ended drops tasks without a
    // call.
    void while_paused(std::function<void()> task);
    // Within such a task. After an error the machine is as it was. RAM is as saved from here on: what is still to be
    // sent of it (MemorySender::send_rest) is sent after this. Without firmware, `firmware_code` is left empty.
    Result<MachineState> save_state(WithFirmware firmware = WithFirmware::Yes);
    // Any thread: holds the vCPUs back for `percent` of the time (0 to 99), so that the guest writes less memory.
    void throttle(unsigned percent) { m_vcpus->throttle(percent); }
    // Before start(), with RAM's content in place or on its way; the flash content is the configuration's. All clocks
    // go forward by the time that the machine was away. After an error the machine is not to be started.
    Result<void> restore_state(MachineState const& state);

    // `action` is called before RAM is wiped at a reset, with the vCPUs stopped: who still fills RAM is to be done
    // first.
    void before_wipe(std::function<void()> action) { m_before_wipe = std::move(action); }

    // After wait(): everything the guest was told is stored, is stored.
    Result<void> close();

    IoLoop& loop() noexcept { return *m_loop; }
    Platform& platform() noexcept { return *m_platform; }
    GuestRam& ram() noexcept { return *m_ram; }
    Partition const& partition() const noexcept { return *m_partition; }
    Partition& partition() noexcept { return *m_partition; }
    // After wait().
    MachineStatistics statistics() const;

private:
    explicit Machine(std::unique_ptr<Partition> partition) : m_partition(std::move(partition)) {}
    void request_power_off() noexcept override;
    void request_reset() noexcept override;
    void vcpu_ended(unsigned index, std::optional<Error> error);
    Result<void> carry_out_reset();
    void run_tasks(std::unique_lock<std::mutex>& lock);
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
    std::vector<std::function<void()>> m_tasks;
    std::optional<Error> m_failure;
    uint32_t m_resets = 0;
    std::function<void()> m_before_wipe;

    // Owner's thread: clocks as of when time stopped for a task.
    struct Pause {
        int64_t wall;
        uint64_t guest_tsc;
    };
    std::optional<Pause> m_paused;
};

} // namespace coffer::vmm
