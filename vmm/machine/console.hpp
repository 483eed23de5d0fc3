// The guest's serial console on the user's terminal or in a file.
//
// Keys while the terminal is raw: Ctrl-A x ends the VM at once, Ctrl-A h says so, Ctrl-A Ctrl-A sends one Ctrl-A.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include <termios.h>

#include "base/file.hpp"
#include "devices/core/backends.hpp"

namespace coffer::vmm {

// Puts the terminal on `fd` into raw mode and back: at the end of its life, and from fatal signals (SIGSEGV, SIGABRT
// and the like) that would otherwise leave the user's shell unusable. At most one at a time, entered before a CPU
// backend is made: the software CPU's handlers for the same signals then come first, and pass on what is no fault of
// the guest's.
class RawTerminal {
public:
    // Nothing where `fd` is not a terminal.
    static Result<std::unique_ptr<RawTerminal>> enter(int fd);
    ~RawTerminal();
    RawTerminal(RawTerminal const&) = delete;
    RawTerminal& operator=(RawTerminal const&) = delete;

    // Async-signal-safe; for handlers that end the process.
    static void restore_now() noexcept;

private:
    RawTerminal() = default;
};

// Writes on a thread of its own, so that a slow terminal does not hold the device lock: the guest waits only when
// k_capacity bytes are outstanding. A failed write is reported once and ends output.
class OutputThread final : public devices::ByteSink {
public:
    static constexpr size_t k_capacity = 1U << 20;

    OutputThread(UniqueFd fd, std::string name);
    ~OutputThread() override; // after all is written

    void write(Bytes bytes) noexcept override;

private:
    void run() noexcept;

    UniqueFd m_fd;
    std::string m_name;
    std::mutex m_mutex;
    std::condition_variable m_filled;
    std::condition_variable m_drained;
    ByteVector m_pending;
    bool m_closing = false;
    bool m_failed = false;
    std::thread m_thread;
};

// Takes what the user types apart into guest input and commands. Not thread-safe.
class ConsoleKeys {
public:
    struct Actions {
        std::function<void()> quit;
        std::function<void()> help;
    };
    explicit ConsoleKeys(Actions actions) : m_actions(std::move(actions)) {}
    // What of `typed` is for the guest.
    ByteVector filter(Bytes typed);

private:
    Actions m_actions;
    bool m_escaped = false;
};

} // namespace coffer::vmm
