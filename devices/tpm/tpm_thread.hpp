// Runs a TPM's commands off the vCPU threads: one command at a time, with no lock held while it runs.
//
// From submit() to done() a command is queued, executes, and is made durable. While the NV store refuses to take the
// state that a command has changed (a full disk), that command's response is held back and the commit is tried again:
// the guest sees a TPM that is busy, never an answer about state that a power cut would undo. When the guest gives up
// (abandon()) nobody was told anything, as with a power cut between command and response. Commands that come meanwhile
// are answered with TPM_RC_RETRY without being started, which the specification defines as "send it again" (TPM 2.0
// Library 1.59, Part 2, 6.6.3), until the store works again.
//
// Thread rule: all functions are called under the device lock, but for done() and wait_done().
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "devices/core/scheduler.hpp"
#include "devices/tpm/tpm_backend.hpp"

namespace coffer::devices {

class TpmThread {
public:
    // `buffer_size`: the front end's, in bytes. `on_done`, if any, runs on the I/O thread under the device lock some
    // time after a command that has not been abandoned has ended. `on_response`, if any, gets the response of such a
    // command on the TPM's thread just before done(); once abandon() has returned it is not called any more. It blocks
    // nothing and calls nothing here. Backend and scheduler outlive the thread.
    TpmThread(TpmBackend& backend, Scheduler& scheduler, size_t buffer_size, std::function<void()> on_done = {},
              std::function<void(Bytes)> on_response = {});
    ~TpmThread();
    TpmThread(TpmThread const&) = delete;
    TpmThread& operator=(TpmThread const&) = delete;

    // Copies the command and returns. The one before has ended (done()) or has been abandoned.
    void submit(Locality locality, Bytes command);
    // Whether the submitted command has ended. Any thread, no lock: true as soon as the response is there.
    bool done() const noexcept {
        return m_done.load(std::memory_order_acquire) == m_submitted.load(std::memory_order_acquire);
    }
    // The response, once done(); valid until the next submit().
    Bytes response() const noexcept { return Bytes(m_response).first(m_response_size); }
    // Returns when done() or after `limit`, whichever is first. Any thread, without the device lock.
    void wait_done(Nanoseconds limit) noexcept;

    // Asks the submitted command to end early, and goes on asking until it ends.
    void cancel() noexcept;
    // The same, and nobody wants its response. done() is meaningless until the next submit().
    void abandon() noexcept;

    // Both happen after the running command and before the next one.
    void power_cycle() noexcept;
    void reset_established(Locality locality) noexcept;

    // Waits for all work handed over so far. Timeout where that takes longer than `limit`.
    Result<void> drain(Nanoseconds limit) const;

private:
    using Ticket = uint32_t; // of a submitted command; 0: none yet

    struct Work {
        bool power_cycle = false;
        std::optional<Locality> reset_established;
        Ticket command = 0;
        Locality locality = Locality::Zero;
        ByteVector bytes;

        bool empty() const noexcept { return !power_cycle && !reset_established && command == 0; }
    };

    void run();
    void run_command(Work const& work);
    void hold_until_durable(Ticket ticket);
    void publish(Ticket ticket);
    void ask_to_cancel() noexcept;

    TpmBackend& m_backend;
    Scheduler& m_scheduler;
    std::function<void()> m_on_done;
    std::function<void(Bytes)> m_on_response;
    std::shared_ptr<TpmThread*> m_self; // null once the destructor has begun; device lock
    std::unique_ptr<Timer> m_cancel_timer;

    std::atomic<Ticket> m_submitted{0};
    std::atomic<Ticket> m_done{0};

    // The thread's, until m_done says otherwise.
    ByteVector m_response;
    size_t m_response_size = 0;

    mutable std::mutex m_mutex; // never held while the backend works, but for cancel(), which does not block
    mutable std::condition_variable m_work_cv;
    mutable std::condition_variable m_done_cv;
    Work m_work;            // guarded by m_mutex, as is all below
    bool m_working = false; // the thread has taken work that has not ended
    Ticket m_executing = 0; // the command inside the backend
    Ticket m_cancelled = 0; // the command to be cancelled
    Ticket m_abandoned = 0; // the latest command nobody waits for
    bool m_stop = false;
    bool m_stopped = false;

    std::thread m_thread; // last: it uses all of the above
};

} // namespace coffer::devices
