#include "base/log.hpp"

#include <string>
#include <unistd.h>

namespace coffer::log {

namespace {
std::atomic<Level> g_level{Level::Warning};
std::atomic<bool> g_raw_terminal{false};

std::string_view prefix(Level level) noexcept {
    switch (level) {
    case Level::Error: return "coffer: error: ";
    case Level::Warning: return "coffer: warning: ";
    case Level::Info: return "coffer: ";
    case Level::Debug: return "coffer: debug: ";
    }
    return "coffer: ";
}
}  // namespace

void set_level(Level level) noexcept { g_level.store(level, std::memory_order_relaxed); }
Level level() noexcept { return g_level.load(std::memory_order_relaxed); }
void set_raw_terminal(bool raw) noexcept { g_raw_terminal.store(raw, std::memory_order_relaxed); }

void write(Level level, std::string_view message) noexcept {
    std::string line(prefix(level));
    line += message;
    line += g_raw_terminal.load(std::memory_order_relaxed) ? "\r\n" : "\n";
    // Nothing can be done about a standard error that cannot be written.
    [[maybe_unused]] auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace coffer::log
