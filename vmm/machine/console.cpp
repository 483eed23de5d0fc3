#include "vmm/machine/console.hpp"

#include <array>
#include <csignal>
#include <unistd.h>

#include "base/log.hpp"

namespace coffer::vmm {

namespace {

constexpr std::array k_fatal_signals{SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT, SIGTERM, SIGHUP};

std::atomic<int> g_terminal{-1};
termios g_saved{};
std::array<struct sigaction, k_fatal_signals.size()> g_previous{};

void restore_and_pass_on(int number, siginfo_t* info, void* context) {
    RawTerminal::restore_now();
    for (size_t i = 0; i < k_fatal_signals.size(); ++i) {
        if (k_fatal_signals[i] != number) continue;
        auto const& previous = g_previous[i];
        if ((previous.sa_flags & SA_SIGINFO) && previous.sa_sigaction)
            return previous.sa_sigaction(number, info, context);
        if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(number);
    }
    std::signal(number, SIG_DFL);
    std::raise(number);
}

} // namespace

Result<std::unique_ptr<RawTerminal>> RawTerminal::enter(int fd) {
    std::unique_ptr<RawTerminal> none;
    if (!::isatty(fd)) return none;
    if (::tcgetattr(fd, &g_saved) != 0) return errno_error(errno, "cannot read the terminal's settings");
    struct sigaction action {};
    action.sa_sigaction = restore_and_pass_on;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (size_t i = 0; i < k_fatal_signals.size(); ++i) ::sigaction(k_fatal_signals[i], &action, &g_previous[i]);
    g_terminal = fd;
    termios raw = g_saved;
    ::cfmakeraw(&raw);
    if (::tcsetattr(fd, TCSANOW, &raw) != 0) {
        g_terminal = -1;
        return errno_error(errno, "cannot make the terminal raw");
    }
    log::set_raw_terminal(true);
    return std::unique_ptr<RawTerminal>(new RawTerminal());
}

RawTerminal::~RawTerminal() {
    restore_now();
    for (size_t i = 0; i < k_fatal_signals.size(); ++i) ::sigaction(k_fatal_signals[i], &g_previous[i], nullptr);
}

void RawTerminal::restore_now() noexcept {
    int fd = g_terminal.exchange(-1);
    if (fd < 0) return;
    log::set_raw_terminal(false);
    ::tcsetattr(fd, TCSANOW, &g_saved);
}

OutputThread::OutputThread(UniqueFd fd, std::string name) : m_fd(std::move(fd)), m_name(std::move(name)) {
    m_thread = std::thread([this] { run(); });
}

OutputThread::~OutputThread() {
    {
        std::lock_guard lock(m_mutex);
        m_closing = true;
    }
    m_filled.notify_one();
    m_thread.join();
}

void OutputThread::write(Bytes bytes) noexcept {
    std::unique_lock lock(m_mutex);
    m_drained.wait(lock, [this] { return m_pending.size() < k_capacity || m_failed; });
    if (m_failed) return;
    append(m_pending, bytes);
    m_filled.notify_one();
}

void OutputThread::run() noexcept {
    std::unique_lock lock(m_mutex);
    for (;;) {
        m_filled.wait(lock, [this] { return !m_pending.empty() || m_closing; });
        if (m_pending.empty()) return;
        ByteVector chunk;
        chunk.swap(m_pending);
        lock.unlock();
        auto written = write_all(m_fd.get(), chunk, m_name);
        lock.lock();
        if (!written) {
            m_failed = true;
            m_pending.clear();
            log::error("{}; the guest's output is no longer written", written.error().message());
        }
        m_drained.notify_all();
        if (m_failed) return;
    }
}

ByteVector ConsoleKeys::filter(Bytes typed) {
    constexpr std::byte k_escape{1}; // Ctrl-A
    ByteVector for_guest;
    for (std::byte key : typed) {
        if (!m_escaped) {
            if (key == k_escape)
                m_escaped = true;
            else
                for_guest.push_back(key);
            continue;
        }
        m_escaped = false;
        if (key == k_escape)
            for_guest.push_back(key);
        else if (key == std::byte{'x'} || key == std::byte{'X'})
            m_actions.quit();
        else
            m_actions.help();
    }
    return for_guest;
}

} // namespace coffer::vmm
