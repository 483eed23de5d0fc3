// How far long work is: a line on standard error that is rewritten, where that is a terminal; nothing elsewhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.hpp"

namespace coffer::cli {

// What fits into one line of so many columns: a bar where there is room for one.
std::string progress_text(std::string_view what, uint64_t done, uint64_t total, size_t columns);

class ProgressLine {
public:
    explicit ProgressLine(std::string what);
    // Clears the line.
    ~ProgressLine();
    ProgressLine(ProgressLine const&) = delete;
    ProgressLine& operator=(ProgressLine const&) = delete;

    // What it is about from here on.
    void rename(std::string what) { m_what = std::move(what); }
    // Of any unit; a total of 0 is not known. Prints some times a second at most.
    void show(uint64_t done, uint64_t total);

private:
    std::string m_what;
    bool m_terminal;
    bool m_shown = false;
    Nanoseconds m_next = 0;
};

} // namespace coffer::cli
