// Byte spans, and loads and stores of little- and big-endian integers in them. All functions are bounds-checked by
// assertion: a caller that handles hostile input checks sizes first.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/result.hpp"

namespace coffer {

using Bytes = std::span<const std::byte>;
using MutBytes = std::span<std::byte>;
using ByteVector = std::vector<std::byte>;

static_assert(std::endian::native == std::endian::little);

template <class T>
T load_le(Bytes bytes, size_t offset = 0) {
    static_assert(std::is_unsigned_v<T>);
    COFFER_ASSERT(offset <= bytes.size() && bytes.size() - offset >= sizeof(T));
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

template <class T>
void store_le(MutBytes bytes, size_t offset, std::type_identity_t<T> value) {
    static_assert(std::is_unsigned_v<T>);
    COFFER_ASSERT(offset <= bytes.size() && bytes.size() - offset >= sizeof(T));
    std::memcpy(bytes.data() + offset, &value, sizeof value);
}

template <class T>
T byte_swap(T value) noexcept {
    static_assert(std::is_unsigned_v<T>);
    if constexpr (sizeof(T) == 1) return value;
    else if constexpr (sizeof(T) == 2) return static_cast<T>(__builtin_bswap16(value));
    else if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
    else return __builtin_bswap64(value);
}

template <class T>
T load_be(Bytes bytes, size_t offset = 0) {
    return byte_swap(load_le<T>(bytes, offset));
}

template <class T>
void store_be(MutBytes bytes, size_t offset, std::type_identity_t<T> value) {
    store_le<T>(bytes, offset, byte_swap<T>(value));
}

// The value of a 1- to 8-byte little-endian register access, and the reverse. The register access helpers of devices.
inline uint64_t load_le_sized(Bytes bytes) {
    COFFER_ASSERT(bytes.size() <= 8);
    uint64_t value = 0;
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), bytes.size());
    return value;
}
inline void store_le_sized(MutBytes bytes, uint64_t value) {
    COFFER_ASSERT(bytes.size() <= 8);
    if (!bytes.empty()) std::memcpy(bytes.data(), &value, bytes.size());
}

// What an access that nothing answers reads.
inline void fill_all_ones(MutBytes bytes) noexcept {
    if (!bytes.empty()) std::memset(bytes.data(), 0xFF, bytes.size());
}

inline Bytes as_bytes(std::string_view text) noexcept {
    return std::as_bytes(std::span(text.data(), text.size()));
}
template <class T>
Bytes object_bytes(T const& object) noexcept {
    static_assert(std::is_trivially_copyable_v<T>);
    return std::as_bytes(std::span(&object, 1));
}

inline void append(ByteVector& to, Bytes from) { to.insert(to.end(), from.begin(), from.end()); }

constexpr bool is_power_of_two(uint64_t value) noexcept { return value != 0 && (value & (value - 1)) == 0; }
constexpr uint64_t align_up(uint64_t value, uint64_t alignment) noexcept {
    return (value + alignment - 1) & ~(alignment - 1);
}
constexpr uint64_t align_down(uint64_t value, uint64_t alignment) noexcept { return value & ~(alignment - 1); }

}  // namespace coffer
