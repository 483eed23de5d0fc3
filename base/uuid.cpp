#include "base/uuid.hpp"

namespace coffer {

namespace {
constexpr std::string_view k_digits = "0123456789abcdef";

constexpr bool is_dash_position(size_t i) noexcept {
    return i == 8 || i == 13 || i == 18 || i == 23;
}

std::optional<unsigned> digit_value(char c) noexcept {
    if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
    if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A') + 10;
    return std::nullopt;
}
} // namespace

std::optional<Uuid> Uuid::parse(std::string_view text) noexcept {
    if (text.size() != 36) return std::nullopt;
    Storage bytes{};
    size_t digits = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        if (is_dash_position(i)) {
            if (text[i] != '-') return std::nullopt;
            continue;
        }
        auto value = digit_value(text[i]);
        if (!value) return std::nullopt;
        auto& byte = bytes[digits / 2];
        byte = (byte << 4) | static_cast<std::byte>(*value);
        ++digits;
    }
    return Uuid(bytes);
}

std::string Uuid::to_string() const {
    std::string text;
    text.reserve(36);
    for (std::byte byte : m_bytes) {
        if (is_dash_position(text.size())) text += '-';
        text += k_digits[std::to_integer<unsigned>(byte) >> 4];
        text += k_digits[std::to_integer<unsigned>(byte) & 15];
    }
    return text;
}

} // namespace coffer
