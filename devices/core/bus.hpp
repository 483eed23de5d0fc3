// Address decoding: which device answers an access. Not thread-safe: the machine's device lock covers it.
#pragma once

#include <limits>
#include <map>
#include <optional>

#include "base/result.hpp"
#include "base/strong.hpp"
#include "devices/core/device.hpp"

namespace coffer::devices {

template <class Address, class Target>
class Bus {
public:
    using Rep = decltype(Address{}.value());
    struct Hit {
        Target* target;
        Rep offset;
    };

    // Refuses an empty range, one that runs past the end of the space, and one that overlaps another.
    Result<void> attach(Address first, uint64_t length, Target& target) {
        constexpr uint64_t k_last = std::numeric_limits<Rep>::max();
        if (length == 0) return make_error(ErrorCode::Internal, "empty range at {:#x}", first.value());
        if (length - 1 > k_last - first.value())
            return make_error(ErrorCode::Internal, "range {:#x}+{:#x} leaves the address space", first.value(), length);
        auto last = static_cast<Rep>(first.value() + (length - 1));
        auto next = m_ranges.lower_bound(first.value());
        if (next != m_ranges.end() && next->first <= last)
            return make_error(ErrorCode::Internal, "range {:#x}+{:#x} overlaps {:#x}", first.value(), length, next->first);
        if (next != m_ranges.begin() && std::prev(next)->second.last >= first.value())
            return make_error(ErrorCode::Internal, "range {:#x}+{:#x} overlaps {:#x}", first.value(), length,
                              std::prev(next)->first);
        m_ranges.emplace(first.value(), Range{last, &target});
        return {};
    }

    // Takes back the range that begins at `first`; a range that is not there is no error.
    void detach(Address first) { m_ranges.erase(first.value()); }

    // The device whose range holds the whole access.
    std::optional<Hit> find(Address address, size_t size) const {
        auto after = m_ranges.upper_bound(address.value());
        if (after == m_ranges.begin() || size == 0) return std::nullopt;
        auto const& [first, range] = *std::prev(after);
        if (address.value() > range.last || size - 1 > static_cast<uint64_t>(range.last) - address.value())
            return std::nullopt;
        return Hit{range.target, static_cast<Rep>(address.value() - first)};
    }

private:
    struct Range {
        Rep last;  // inclusive, so that a range may end at the top of the space
        Target* target;
    };
    std::map<Rep, Range> m_ranges;
};

using MmioBus = Bus<GuestPhysAddr, MmioDevice>;
using PioBus = Bus<IoPort, PioDevice>;

}  // namespace coffer::devices
