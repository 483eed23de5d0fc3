#include "crypto/der.hpp"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <vector>

#include <fmt/format.h>

namespace coffer::crypto::der {

namespace {

void append_byte(ByteVector& to, unsigned value) {
    to.push_back(static_cast<std::byte>(value & 0xFF));
}

// Base 128, most significant group first, all but the last with bit 8 (X.690 8.19.2).
void append_arc(ByteVector& to, uint32_t arc) {
    for (unsigned shift = 28; shift > 0; shift -= 7)
        if (arc >> shift != 0) append_byte(to, 0x80U | (arc >> shift & 0x7F));
    append_byte(to, arc & 0x7F);
}

std::tm broken_down(int64_t seconds) {
    std::time_t const time = seconds;
    std::tm utc{};
    bool const converted = ::gmtime_r(&time, &utc) != nullptr;
    COFFER_ASSERT(converted && utc.tm_year >= 50 && utc.tm_year + 1900 <= 9999);
    return utc;
}

std::string without_year(std::tm const& utc) {
    return fmt::format("{:02}{:02}{:02}{:02}{:02}Z", utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec);
}

} // namespace

ByteVector element(uint8_t tag, Bytes content) {
    ByteVector result;
    append_byte(result, tag);
    auto const size = content.size();
    COFFER_ASSERT(size <= UINT32_MAX);
    if (size < 0x80) {
        append_byte(result, static_cast<unsigned>(size));
    } else {
        unsigned octets = 1;
        while (size >> 8 * octets != 0) ++octets;
        append_byte(result, 0x80U | octets);
        while (octets-- > 0) append_byte(result, static_cast<unsigned>(size >> 8 * octets));
    }
    append(result, content);
    return result;
}

ByteVector element(uint8_t tag, std::initializer_list<Bytes> parts) {
    ByteVector content;
    for (Bytes part : parts) append(content, part);
    return element(tag, content);
}

ByteVector set_of(std::initializer_list<Bytes> parts) {
    std::vector<Bytes> sorted(parts);
    std::sort(sorted.begin(), sorted.end(),
              [](Bytes a, Bytes b) { return std::ranges::lexicographical_compare(a, b); });
    ByteVector content;
    for (Bytes part : sorted) append(content, part);
    return element(Set, content);
}

ByteVector oid(std::string_view dotted) {
    std::vector<uint32_t> arcs;
    for (auto const* at = dotted.data(); at != dotted.data() + dotted.size();) {
        uint32_t arc = 0;
        auto const [end, error] = std::from_chars(at, dotted.data() + dotted.size(), arc);
        COFFER_ASSERT(error == std::errc() && end != at);
        arcs.push_back(arc);
        at = end;
        if (at != dotted.data() + dotted.size()) {
            COFFER_ASSERT(*at == '.');
            ++at;
        }
    }
    COFFER_ASSERT(arcs.size() >= 2 && arcs[0] <= 2 && arcs[1] < (arcs[0] < 2 ? 40U : 0x8000'0000U));
    ByteVector content;
    append_arc(content, arcs[0] * 40 + arcs[1]);
    for (size_t i = 2; i < arcs.size(); ++i) append_arc(content, arcs[i]);
    return element(ObjectIdentifier, content);
}

ByteVector boolean(bool value) {
    return element(Boolean, std::array{value ? std::byte{0xFF} : std::byte{0}});
}

ByteVector integer(uint64_t value) {
    std::array<std::byte, 8> magnitude{};
    store_be<uint64_t>(magnitude, 0, value);
    return integer(Bytes(magnitude));
}

ByteVector integer(Bytes magnitude) {
    while (magnitude.size() > 1 && magnitude.front() == std::byte{0}) magnitude = magnitude.subspan(1);
    ByteVector content;
    // Two's complement: the first bit is the sign.
    if (magnitude.empty() || (magnitude.front() & std::byte{0x80}) != std::byte{0}) append_byte(content, 0);
    append(content, magnitude);
    return element(Integer, content);
}

ByteVector utf8(std::string_view text) {
    return element(Utf8String, as_bytes(text));
}

ByteVector octets(Bytes content) {
    return element(OctetString, content);
}

ByteVector bits(Bytes content) {
    return element(BitString, {std::array{std::byte{0}}, content});
}

ByteVector certificate_time(int64_t seconds) {
    auto const utc = broken_down(seconds);
    if (utc.tm_year >= 150) return generalized_time(seconds);
    return element(UtcTime, as_bytes(fmt::format("{:02}{}", utc.tm_year % 100, without_year(utc))));
}

ByteVector generalized_time(int64_t seconds) {
    auto const utc = broken_down(seconds);
    return element(GeneralizedTime, as_bytes(fmt::format("{:04}{}", utc.tm_year + 1900, without_year(utc))));
}

} // namespace coffer::crypto::der
