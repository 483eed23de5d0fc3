#include "vmm/machine/vcpu_threads.hpp"

#include <csignal>

#include <pthread.h>

namespace coffer::vmm {

namespace {
thread_local unsigned t_current_vcpu = 0;

constexpr auto k_throttle_run = std::chrono::milliseconds(10); // that vCPUs run between two times of being held
} // namespace

unsigned current_vcpu() noexcept {
    return t_current_vcpu;
}

VcpuThreads::VcpuThreads(std::vector<std::unique_ptr<Vcpu>> vcpus, OnEnd on_end)
    : m_vcpus(std::move(vcpus)), m_on_end(std::move(on_end)), m_ended(m_vcpus.size(), false) {}

VcpuThreads::~VcpuThreads() {
    {
        std::lock_guard lock(m_mutex);
        m_wish = Wish::End;
    }
    m_changed.notify_all();
    kick_all();
    for (auto& thread : m_threads) thread.join();
    if (m_throttler.joinable()) m_throttler.join();
}

void VcpuThreads::resume() {
    {
        std::lock_guard lock(m_mutex);
        m_wish = Wish::Run;
        m_ended.assign(m_vcpus.size(), false);
    }
    if (m_threads.empty())
        for (unsigned index = 0; index < m_vcpus.size(); ++index) m_threads.emplace_back([this, index] { run(index); });
    m_changed.notify_all();
}

void VcpuThreads::pause() {
    std::unique_lock lock(m_mutex);
    m_wish = Wish::Pause;
    kick_all();
    m_changed.notify_all(); // those that are held
    m_changed.wait(lock, [this] { return m_running == 0; });
}

void VcpuThreads::kick_all() noexcept {
    for (auto& vcpu : m_vcpus) vcpu->kick();
}

void VcpuThreads::throttle(unsigned percent) {
    COFFER_ASSERT(percent < 100);
    std::lock_guard lock(m_mutex);
    m_throttle = percent;
    if (percent != 0 && !m_throttler.joinable()) m_throttler = std::thread([this] { hold_back(); });
    m_changed.notify_all();
}

void VcpuThreads::hold_back() noexcept {
    ::pthread_setname_np(::pthread_self(), "throttle");
    std::unique_lock lock(m_mutex);
    auto const ending = [this] { return m_wish == Wish::End; };
    while (!ending()) {
        m_changed.wait(lock, [&] { return m_throttle != 0 || ending(); });
        if (m_changed.wait_for(lock, k_throttle_run, [&] { return m_throttle == 0 || ending(); })) continue;
        m_held = true;
        kick_all();
        auto const rest = k_throttle_run * m_throttle / (100 - m_throttle);
        m_changed.wait_for(lock, rest, [&] { return m_throttle == 0 || ending(); });
        m_held = false;
        m_changed.notify_all();
    }
}

void VcpuThreads::run(unsigned index) noexcept {
    t_current_vcpu = index;
    ::pthread_setname_np(::pthread_self(), fmt::format("vcpu-{}", index).c_str());
    auto& vcpu = *m_vcpus[index];
    std::unique_lock lock(m_mutex);
    for (;;) {
        m_changed.wait(lock, [&] { return m_wish == Wish::End || (m_wish == Wish::Run && !m_ended[index]); });
        if (m_wish == Wish::End) return;
        ++m_running;
        bool go_on = true;
        while (go_on && m_wish == Wish::Run) {
            if (m_held) {
                m_changed.wait(lock, [this] { return !m_held || m_wish != Wish::Run; });
                continue;
            }
            lock.unlock();
            auto exit = vcpu.run();
            go_on = exit && *exit == VcpuExit::Kicked;
            if (!exit)
                m_on_end(index, std::move(exit).error());
            else if (*exit == VcpuExit::TripleFault)
                m_on_end(index, std::nullopt);
            lock.lock();
        }
        if (!go_on) m_ended[index] = true;
        --m_running;
        m_changed.notify_all();
    }
}

} // namespace coffer::vmm
