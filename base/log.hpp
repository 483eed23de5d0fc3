// Diagnostics on standard error. Never holds secret bytes (tests grep for them). Thread-safe: one write(2) a line.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>

#include <fmt/format.h>

namespace coffer::log {

enum class Level : uint8_t { Error, Warning, Info, Debug };

// What is printed; Warning until the CLI's --verbose says otherwise.
void set_level(Level level) noexcept;
Level level() noexcept;

// "coffer: warning: <message>\n", or "\r\n" line ends while the terminal is raw.
void write(Level level, std::string_view message) noexcept;
void set_raw_terminal(bool raw) noexcept;

template <class... Args>
void emit(Level wanted, fmt::format_string<Args...> format, Args&&... args) {
    if (wanted <= level()) write(wanted, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
    emit(Level::Error, format, std::forward<Args>(args)...);
}
template <class... Args>
void warning(fmt::format_string<Args...> format, Args&&... args) {
    emit(Level::Warning, format, std::forward<Args>(args)...);
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
    emit(Level::Info, format, std::forward<Args>(args)...);
}
template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
    emit(Level::Debug, format, std::forward<Args>(args)...);
}

// Lets a guest's faults be logged without letting a guest fill the host's log: at most `burst` lines, then one more
// after each further `burst` calls, with the number left out. One object a call site; thread-safe.
class RateLimit {
public:
    explicit constexpr RateLimit(uint32_t burst = 16) : m_burst(burst) {}
    bool allow() noexcept {
        uint32_t count = m_count.fetch_add(1, std::memory_order_relaxed);
        return count < m_burst || count % m_burst == 0;
    }

private:
    std::atomic<uint32_t> m_count{0};
    uint32_t m_burst;
};

}  // namespace coffer::log
