// How far long work is: a line on standard error that is rewritten, where that is a terminal; nothing elsewhere.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.hpp"

namespace coffer::cli {

class ProgressLine {
public:
    explicit ProgressLine(std::string what);
    // Clears the line.
    ~ProgressLine();
    ProgressLine(ProgressLine const&) = delete;
    ProgressLine& operator=(ProgressLine const&) = delete;

    // What it is about from here on.
    void rename(std::string what) { m_what = std::move(what); }
    // Of any unit. Prints some times a second at most.
    void show(uint64_t done, uint64_t total);

private:
    std::string m_what;
    bool m_terminal;
    bool m_shown = false;
    Nanoseconds m_next = 0;
};

} // namespace coffer::cli
