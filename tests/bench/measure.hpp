// What measurements have in common: clocks, and the end of a program whose set-up fails.
#pragma once

#include <cstdlib>
#include <type_traits>
#include <utility>

#include <time.h>

#include "base/log.hpp"
#include "base/result.hpp"

namespace coffer::bench {

inline double seconds(clockid_t clock) {
    timespec now{};
    ::clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

template <class T>
T must(Result<T> result) {
    if (!result) {
        log::error("{}", result.error().message());
        std::exit(1);
    }
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}

} // namespace coffer::bench
