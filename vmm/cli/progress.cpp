#include "vmm/cli/progress.hpp"

#include <algorithm>

#include <fmt/format.h>
#include <unistd.h>

#include "base/file.hpp"

namespace coffer::cli {

namespace {
constexpr Nanoseconds k_interval = 200 * k_ns_per_ms;

void print(std::string_view text) {
    // Nothing depends on it.
    [[maybe_unused]] auto written = write_all(STDERR_FILENO, as_bytes(text), "standard error");
}
} // namespace

ProgressLine::ProgressLine(std::string what) : m_what(std::move(what)), m_terminal(::isatty(STDERR_FILENO) == 1) {}

ProgressLine::~ProgressLine() {
    if (m_shown) print("\r\x1b[K");
}

void ProgressLine::show(uint64_t done, uint64_t total) {
    if (!m_terminal || monotonic_now() < m_next) return;
    m_next = monotonic_now() + k_interval;
    m_shown = true;
    constexpr unsigned k_width = 30;
    double const part = total == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    auto const filled = static_cast<size_t>(part * k_width);
    print(fmt::format("\r\x1b[K{} [{:<{}}] {:3.0f} %", m_what, std::string(filled, '#'), k_width, part * 100));
}

} // namespace coffer::cli
