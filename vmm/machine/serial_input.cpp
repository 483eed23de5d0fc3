#include "vmm/machine/serial_input.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <unistd.h>

#include "base/log.hpp"

namespace coffer::vmm {

SerialInput::SerialInput(IoLoop& loop, Platform& platform, int fd, bool is_terminal, std::function<void()> quit)
    : m_loop(loop), m_platform(platform), m_fd(fd), m_is_terminal(is_terminal),
      m_keys({.quit = std::move(quit),
              .help = [] { log::write(log::Level::Info, "Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends Ctrl-A to it"); }}) {
}

SerialInput::~SerialInput() {
    std::lock_guard lock(m_loop.device_lock());
    if (m_watching) m_loop.unwatch(m_fd);
}

void SerialInput::start() {
    m_watching = true;
    m_loop.watch_readable(m_fd, [this] { on_readable(); });
}

void SerialInput::on_readable() {
    std::array<std::byte, 256> buffer{};
    ssize_t count = ::read(m_fd, buffer.data(), buffer.size());
    if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (count <= 0) {
        m_ended = true;
        m_watching = false;
        m_loop.unwatch(m_fd);
        return;
    }
    auto typed = Bytes(buffer).first(static_cast<size_t>(count));
    if (m_is_terminal)
        append(m_waiting, m_keys.filter(typed));
    else
        append(m_waiting, typed);
    deliver();
}

void SerialInput::on_room() {
    deliver();
}

void SerialInput::deliver() {
    size_t count = std::min(m_waiting.size(), m_platform.serial_room());
    if (count > 0) {
        m_platform.serial_receive(Bytes(m_waiting).first(count));
        m_waiting.erase(m_waiting.begin(), m_waiting.begin() + static_cast<ptrdiff_t>(count));
    }
    // A user's Ctrl-A x must get through to a guest that does not read; a pipe waits.
    bool watch = !m_ended && (m_is_terminal ? m_waiting.size() < 4096 : m_waiting.empty());
    if (watch == m_watching) return;
    m_watching = watch;
    if (watch)
        m_loop.watch_readable(m_fd, [this] { on_readable(); });
    else
        m_loop.unwatch(m_fd);
}

} // namespace coffer::vmm
