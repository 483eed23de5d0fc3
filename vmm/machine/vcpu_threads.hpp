// The threads that run vCPUs, and stopping and resuming them together.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/result.hpp"
#include "vmm/accel/accelerator.hpp"

namespace coffer::vmm {

// The vCPU whose thread this is; for devices that each CPU sees its own copy of (the local APIC).
unsigned current_vcpu() noexcept;

class VcpuThreads {
public:
    // Called on a vCPU's thread when its guest can go no further by itself: a triple fault, or an error.
    using OnEnd = std::function<void(unsigned index, std::optional<Error> error)>;

    VcpuThreads(std::vector<std::unique_ptr<Vcpu>> vcpus, OnEnd on_end);
    ~VcpuThreads();
    VcpuThreads(VcpuThreads const&) = delete;
    VcpuThreads& operator=(VcpuThreads const&) = delete;

    // From the owner's thread. Threads are made at the first resume(). pause() returns when every vCPU has stopped: not
    // under the device lock, which a vCPU may wait for.
    void resume();
    void pause();

    // Any thread, at once: vCPUs leave the guest soon and wait for pause() and resume().
    void kick_all() noexcept;

    // Any thread: holds the vCPUs back for `percent` of the time, 0 to 99, until the next call. Clocks go on.
    void throttle(unsigned percent);

    // While paused.
    std::vector<std::unique_ptr<Vcpu>> const& vcpus() const noexcept { return m_vcpus; }

private:
    enum class Wish : uint8_t { Run, Pause, End };
    void run(unsigned index) noexcept;
    void hold_back() noexcept;

    std::vector<std::unique_ptr<Vcpu>> m_vcpus;
    OnEnd m_on_end;

    std::mutex m_mutex;
    std::condition_variable m_changed;
    Wish m_wish = Wish::Pause;
    unsigned m_running = 0;
    std::vector<bool> m_ended; // will not run again before a resume()
    std::vector<std::thread> m_threads;
    unsigned m_throttle = 0; // percent
    bool m_held = false;     // vCPUs wait just now, because of m_throttle
    std::thread m_throttler;
};

} // namespace coffer::vmm
