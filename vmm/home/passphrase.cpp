#include "vmm/home/passphrase.hpp"

#include <cerrno>
#include <fcntl.h>
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include "base/file.hpp"

namespace coffer::vmm {

namespace {

constexpr std::byte k_ctrl_c{0x03};
constexpr std::byte k_ctrl_d{0x04};
constexpr std::byte k_backspace{0x08};
constexpr std::byte k_ctrl_u{0x15};
constexpr std::byte k_delete{0x7F};
constexpr std::byte k_newline{'\n'};
constexpr std::byte k_return{'\r'};

// A passphrase as it is typed.
class Typed {
public:
    void add(std::byte byte) {
        if (m_size < k_max_passphrase) m_buffer.expose_mutable()[m_size] = byte;
        ++m_size;
    }
    void take_back() { m_size -= m_size > 0 ? 1 : 0; }
    void clear() { m_size = 0; }
    bool empty() const { return m_size == 0; }

    Result<crypto::SecretBytes> finish() const {
        if (m_size == 0) return make_error(ErrorCode::InvalidArgument, "the passphrase is empty");
        if (m_size > k_max_passphrase)
            return make_error(ErrorCode::InvalidArgument, "the passphrase is longer than {} bytes", k_max_passphrase);
        return crypto::SecretBytes::copy_of(m_buffer.expose().first(m_size));
    }

private:
    crypto::SecretBytes m_buffer{k_max_passphrase};
    size_t m_size = 0;
};

// One byte into secret memory; 0 at the end.
Result<size_t> read_byte(int fd, crypto::SecretBytes& byte) {
    for (;;) {
        ssize_t count = ::read(fd, byte.expose_mutable().data(), 1);
        if (count >= 0) return static_cast<size_t>(count);
        if (errno != EINTR) return errno_error(errno, "cannot read the passphrase");
    }
}

// The terminal without echo, line editing and signals from keys, until the end of the scope.
class QuietTerminal {
public:
    static Result<QuietTerminal> enter(int fd) {
        QuietTerminal terminal(fd);
        if (::tcgetattr(fd, &terminal.m_saved) != 0) return errno_error(errno, "cannot read the terminal's settings");
        termios quiet = terminal.m_saved;
        quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON | ISIG);
        quiet.c_cc[VMIN] = 1;
        quiet.c_cc[VTIME] = 0;
        if (::tcsetattr(fd, TCSAFLUSH, &quiet) != 0) return errno_error(errno, "cannot turn the terminal's echo off");
        terminal.m_active = true;
        return terminal;
    }
    QuietTerminal(QuietTerminal&& other) noexcept
        : m_saved(other.m_saved), m_fd(other.m_fd), m_active(std::exchange(other.m_active, false)) {}
    QuietTerminal& operator=(QuietTerminal&&) = delete;
    ~QuietTerminal() {
        if (m_active) ::tcsetattr(m_fd, TCSAFLUSH, &m_saved);
    }

private:
    explicit QuietTerminal(int fd) : m_fd(fd) {}

    termios m_saved{};
    int m_fd;
    bool m_active = false;
};

Error cancelled() {
    return make_error(ErrorCode::Cancelled, "no passphrase was given");
}

} // namespace

Result<crypto::SecretBytes> read_passphrase(int fd) {
    Typed typed;
    crypto::SecretBytes byte(1);
    while (TRY(read_byte(fd, byte)) != 0 && byte.expose()[0] != k_newline) typed.add(byte.expose()[0]);
    return typed.finish();
}

Result<crypto::SecretBytes> ask_passphrase(std::string_view what, int hang_up_fd) {
    auto terminal = open_file("/dev/tty", O_RDWR | O_NOCTTY);
    if (!terminal)
        return make_error(ErrorCode::KeyUnavailable,
                          "the {} is needed, and there is no terminal to ask on: give it with --passphrase-fd", what);
    int const fd = terminal->get();
    auto quiet = TRY(QuietTerminal::enter(fd));
    TRY(write_all(fd, as_bytes(fmt::format("{}: ", what)), "the terminal"));
    Typed typed;
    crypto::SecretBytes byte(1);
    for (;;) {
        std::array<pollfd, 2> waits = {pollfd{fd, POLLIN, 0}, pollfd{hang_up_fd, 0, 0}};
        if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR)
            return errno_error(errno, "cannot wait for the passphrase");
        if ((waits[1].revents & (POLLHUP | POLLERR)) != 0) return cancelled();
        if (waits[0].revents == 0) continue;
        size_t count = TRY(read_byte(fd, byte));
        std::byte const key = byte.expose()[0];
        bool const end = count == 0 || key == k_newline || key == k_return || key == k_ctrl_d;
        if (key == k_ctrl_c || end) TRY(write_all(fd, as_bytes("\r\n"), "the terminal"));
        if (key == k_ctrl_c) return cancelled();
        if (end) return typed.finish();
        if (key == k_backspace || key == k_delete)
            typed.take_back();
        else if (key == k_ctrl_u)
            typed.clear();
        else
            typed.add(key);
    }
}

} // namespace coffer::vmm
