#include "vmm/cli/progress.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/file.hpp"

namespace coffer::cli {

namespace {
constexpr Nanoseconds k_interval = 200 * k_ns_per_ms;

void print(std::string_view text) {
    // Nothing depends on it.
    [[maybe_unused]] auto written = write_all(STDERR_FILENO, as_bytes(text), "standard error");
}

// A line that is longer is broken by the terminal, and its first part never goes away.
size_t columns() {
    constexpr size_t k_usual = 80;
    winsize size{};
    // SAFETY: TIOCGWINSZ writes a winsize (ioctl_tty(2)).
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return k_usual;
    return size.ws_col;
}
} // namespace

std::string progress_text(std::string_view what, uint64_t done, uint64_t total, size_t columns) {
    constexpr size_t k_bar = 30;
    constexpr size_t k_least_bar = 8;
    constexpr size_t k_percent = 6;                    // " 100 %"
    size_t const room = columns > 0 ? columns - 1 : 0; // a character in the last column may move the cursor on
    if (total == 0) return std::string(what.substr(0, room));
    double const part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    auto const percent = fmt::format(" {:3.0f} %", part * 100);
    if (room < k_percent) return {};
    what = what.substr(0, room - k_percent);
    size_t const left = room - k_percent - what.size();
    if (left < k_least_bar + 3) return std::string(what) + percent;
    size_t const width = std::min(k_bar, left - 3);
    auto const filled = static_cast<size_t>(part * static_cast<double>(width));
    return fmt::format("{} [{:<{}}]{}", what, std::string(filled, '#'), width, percent);
}

ProgressLine::ProgressLine(std::string what) : m_what(std::move(what)), m_terminal(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
    if (m_shown) print("\r\x1b[K");
}

void ProgressLine::show(uint64_t done, uint64_t total) {
    if (!m_terminal || monotonic_now() < m_next) return;
    m_next = monotonic_now() + k_interval;
    m_shown = true;
    print("\r\x1b[K" + progress_text(m_what, done, total, columns()));
}

} // namespace coffer::cli
