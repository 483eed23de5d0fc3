// Integers that mean one thing: no implicit conversion from or to plain integers.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <optional>

namespace coffer {

// An address in the space that Tag names. Arithmetic that could wrap is offered only in its checked form.
template <class Tag, class Rep = uint64_t>
class Addr {
public:
    constexpr Addr() = default;
    constexpr explicit Addr(Rep value) : m_value(value) {}

    constexpr Rep value() const noexcept { return m_value; }
    constexpr auto operator<=>(Addr const&) const = default;

    // Nothing where the sum would wrap.
    constexpr std::optional<Addr> checked_add(Rep offset) const noexcept {
        Rep sum = static_cast<Rep>(m_value + offset);
        if (sum < m_value) return std::nullopt;
        return Addr(sum);
    }
    // Distance from a lower address; the caller knows that `base` is not above.
    constexpr Rep offset_from(Addr base) const noexcept { return static_cast<Rep>(m_value - base.m_value); }

private:
    Rep m_value = 0;
};

struct GpaTag;
using GuestPhysAddr = Addr<GpaTag, uint64_t>;
struct PortTag;
using IoPort = Addr<PortTag, uint16_t>;

}  // namespace coffer

template <class Tag, class Rep>
struct std::hash<coffer::Addr<Tag, Rep>> {
    size_t operator()(coffer::Addr<Tag, Rep> address) const noexcept { return std::hash<Rep>{}(address.value()); }
};
