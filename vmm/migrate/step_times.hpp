// How long the steps of a migration took while the guest stood still: one line of the log, for who wonders why it was
// long. Not thread-safe.
#pragma once

#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/clock.hpp"

namespace coffer::vmm::migrate {

class StepTimes {
public:
    // The first step begins.
    void begin() noexcept {
        m_last = monotonic_now();
        m_text.clear();
    }
    // This step has ended, and the next one begins.
    void done(std::string_view step) {
        auto const now = monotonic_now();
        m_text += fmt::format("{}{} {:.1f}", m_text.empty() ? "" : ", ", step, static_cast<double>(now - m_last) / 1e6);
        m_last = now;
    }
    // "state 1.2, memory 3.4", in milliseconds.
    std::string const& text() const noexcept { return m_text; }

private:
    Nanoseconds m_last = 0;
    std::string m_text;
};

} // namespace coffer::vmm::migrate
