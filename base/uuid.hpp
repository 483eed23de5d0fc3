// A 128-bit identifier in the byte order of RFC 4122 (the order in which its text form names the bytes).
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace coffer {

class Uuid {
public:
    static constexpr size_t k_size = 16;
    using Storage = std::array<std::byte, k_size>;

    constexpr Uuid() = default;
    constexpr explicit Uuid(Storage const& bytes) : m_bytes(bytes) {}

    // The 36-character form, either case; nothing where the text is anything else.
    static std::optional<Uuid> parse(std::string_view text) noexcept;
    // 36 characters, lower case.
    std::string to_string() const;

    constexpr Storage const& bytes() const noexcept { return m_bytes; }
    constexpr bool is_nil() const noexcept { return *this == Uuid(); }
    constexpr auto operator<=>(Uuid const&) const = default;

    // A field of a saved struct (base/tagged.hpp).
    template <class V>
    void fields(V& v) {
        v.required(1, m_bytes);
    }

private:
    Storage m_bytes{};
};

} // namespace coffer
