#include "devices/tpm/tpm_thread.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>

#include <pthread.h>

#include "base/log.hpp"
#include "devices/tpm/tpm_command.hpp"

namespace coffer::devices {

namespace {

// A cancel that arrives before libtpms has begun with the command is lost, so it is repeated at this interval.
constexpr Nanoseconds k_cancel_interval = k_ns_per_ms;
// Between two tries to commit, doubling from the first to the last.
constexpr std::chrono::milliseconds k_first_retry{20};
constexpr std::chrono::milliseconds k_last_retry{1000};
// Short commands end within this; sleeping costs a vCPU more than it saves.
constexpr Nanoseconds k_spin = 15 * k_ns_per_us;

log::RateLimit s_store_limit;

void report_store_failure(Error const& error) {
    if (s_store_limit.allow())
        log::error("TPM state cannot be stored, so the TPM answers nothing for now: {}", error.message());
}

} // namespace

TpmThread::TpmThread(TpmBackend& backend, Scheduler& scheduler, size_t buffer_size, std::function<void()> on_done,
                     std::function<void(Bytes)> on_response)
    : m_backend(backend), m_scheduler(scheduler), m_on_done(std::move(on_done)), m_on_response(std::move(on_response)),
      m_self(std::make_shared<TpmThread*>(this)), m_response(buffer_size) {
    COFFER_ASSERT(buffer_size >= k_tpm_header_size);
    m_cancel_timer = m_scheduler.make_timer([this] { ask_to_cancel(); });
    m_thread = std::thread([this] { run(); });
}

TpmThread::~TpmThread() {
    *m_self = nullptr;
    m_cancel_timer->disarm();
    {
        std::unique_lock lock(m_mutex);
        m_stop = true;
        m_work = {};
        m_abandoned = m_submitted.load(std::memory_order_relaxed);
        m_work_cv.notify_all();
        while (!m_stopped) {
            if (m_executing != 0) m_backend.cancel();
            m_done_cv.wait_for(lock, std::chrono::nanoseconds(k_cancel_interval));
        }
    }
    m_thread.join();
}

void TpmThread::submit(Locality locality, Bytes command) {
    std::lock_guard lock(m_mutex);
    auto last = m_submitted.load(std::memory_order_relaxed);
    COFFER_ASSERT(m_abandoned == last || m_done.load(std::memory_order_acquire) == last);
    Ticket ticket = last + 1 == 0 ? 1 : last + 1;
    m_work.command = ticket;
    m_work.locality = locality;
    m_work.bytes.assign(command.begin(), command.end());
    m_submitted.store(ticket, std::memory_order_release);
    m_work_cv.notify_one();
}

void TpmThread::wait_done(Nanoseconds limit) noexcept {
    if (done()) return;
    auto start = monotonic_now();
    while (monotonic_now() - start < std::min(k_spin, limit)) {
        if (done()) return;
        __builtin_ia32_pause();
    }
    std::unique_lock lock(m_mutex);
    auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(limit - std::min(k_spin, limit));
    m_done_cv.wait_until(lock, deadline, [&] { return done(); });
}

void TpmThread::cancel() noexcept {
    {
        std::lock_guard lock(m_mutex);
        m_cancelled = m_submitted.load(std::memory_order_relaxed);
    }
    ask_to_cancel();
}

void TpmThread::abandon() noexcept {
    {
        std::lock_guard lock(m_mutex);
        m_abandoned = m_submitted.load(std::memory_order_relaxed);
        m_cancelled = m_abandoned;
        m_work.command = 0;
        m_work_cv.notify_one(); // it may be holding the response
    }
    ask_to_cancel();
}

void TpmThread::ask_to_cancel() noexcept {
    bool again = false;
    {
        // Under the mutex, so that the next command, which nobody wants cancelled, cannot begin in between.
        std::lock_guard lock(m_mutex);
        if (m_cancelled == 0) return;
        if (m_executing == m_cancelled) m_backend.cancel();
        again = m_executing == m_cancelled || m_work.command == m_cancelled;
    }
    if (again) m_cancel_timer->arm(m_scheduler.now() + k_cancel_interval);
}

void TpmThread::power_cycle() noexcept {
    abandon();
    std::lock_guard lock(m_mutex);
    m_work.power_cycle = true;
    m_work.reset_established.reset();
    m_work_cv.notify_one();
}

void TpmThread::reset_established(Locality locality) noexcept {
    std::lock_guard lock(m_mutex);
    m_work.reset_established = locality;
    m_work_cv.notify_one();
}

Result<void> TpmThread::drain(Nanoseconds limit) const {
    std::unique_lock lock(m_mutex);
    auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(limit);
    if (!m_done_cv.wait_until(lock, deadline, [&] { return m_work.empty() && !m_working; }))
        return Error(ErrorCode::Timeout, "the TPM is still busy with a command");
    return {};
}

void TpmThread::run() {
    // Signals are for the threads that expect them.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    pthread_setname_np(pthread_self(), "tpm");

    std::unique_lock lock(m_mutex);
    for (;;) {
        m_work_cv.wait(lock, [&] { return m_stop || !m_work.empty(); });
        if (m_stop) break;
        Work work = std::exchange(m_work, {});
        m_working = true;
        lock.unlock();
        if (work.power_cycle) {
            if (auto cycled = m_backend.power_cycle(); !cycled) log::error("{}", cycled.error().message());
        }
        if (work.reset_established) {
            if (auto reset = m_backend.reset_established(*work.reset_established); !reset)
                log::warning("{}", reset.error().message());
        }
        if (work.command != 0) run_command(work);
        lock.lock();
        m_working = false;
        m_done_cv.notify_all();
    }
    lock.unlock();
    // What an abandoned command changed is kept if the store takes it by now; nobody was told of it, so no more is
    // owed.
    if (auto durable = m_backend.make_durable(); !durable) report_store_failure(durable.error());
    lock.lock();
    m_stopped = true;
    m_done_cv.notify_all();
}

void TpmThread::run_command(Work const& work) {
    if (auto durable = m_backend.make_durable(); !durable) {
        report_store_failure(durable.error());
        m_response_size = write_tpm_response(m_response, TpmResponseCode::Retry);
        publish(work.command);
        return;
    }
    {
        std::lock_guard lock(m_mutex);
        if (m_abandoned == work.command || m_stop) return;
        m_executing = work.command;
    }
    auto size = m_backend.execute(work.locality, work.bytes, m_response);
    {
        std::lock_guard lock(m_mutex);
        m_executing = 0;
    }
    if (size) {
        m_response_size = size.value();
    } else {
        log::error("{}", size.error().message());
        m_response_size = write_tpm_response(m_response, TpmResponseCode::Failure);
    }
    hold_until_durable(work.command);
    publish(work.command);
}

void TpmThread::hold_until_durable(Ticket ticket) {
    auto delay = k_first_retry;
    for (;;) {
        auto durable = m_backend.make_durable();
        if (durable) return;
        report_store_failure(durable.error());
        std::unique_lock lock(m_mutex);
        if (m_work_cv.wait_for(lock, delay, [&] { return m_stop || m_abandoned == ticket; })) return;
        delay = std::min(2 * delay, k_last_retry);
    }
}

void TpmThread::publish(Ticket ticket) {
    {
        std::lock_guard lock(m_mutex);
        if (m_stop || m_abandoned == ticket) return;
        if (m_on_response) m_on_response(response());
        m_done.store(ticket, std::memory_order_release);
        m_done_cv.notify_all();
    }
    if (!m_on_done) return;
    m_scheduler.post([self = m_self] {
        if (*self && (*self)->done()) (*self)->m_on_done();
    });
}

} // namespace coffer::devices
