#include "vmm/cli/memory_size.hpp"

#include <charconv>
#include <limits>

namespace coffer::cli {

Result<uint64_t> parse_memory_size(std::string_view text) {
    auto refused = [&] {
        return make_error(ErrorCode::InvalidArgument,
                          "'{}' is no size: give a whole number with a unit, such as 512M or "
                          "4G",
                          text);
    };
    uint64_t number = 0;
    auto const* end = text.data() + text.size();
    auto [rest, error] = std::from_chars(text.data(), end, number);
    if (error != std::errc() || rest == text.data() || rest == end) return refused();
    unsigned shift = 0;
    switch (*rest) {
    case 'K':
    case 'k': shift = 10; break;
    case 'M':
    case 'm': shift = 20; break;
    case 'G':
    case 'g': shift = 30; break;
    case 'T':
    case 't': shift = 40; break;
    default: return refused();
    }
    std::string_view const tail(rest + 1, static_cast<size_t>(end - rest - 1));
    if (!tail.empty() && tail != "iB" && tail != "ib") return refused();
    if (number > std::numeric_limits<uint64_t>::max() >> shift) return refused();
    return number << shift;
}

} // namespace coffer::cli
