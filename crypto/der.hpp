// Writes ASN.1 in the Distinguished Encoding Rules (ITU-T X.690), for structures that OpenSSL has no functions for.
// Functions give whole elements: tag, length and content. Pure; thread-safe.
#pragma once

#include <initializer_list>
#include <string_view>

#include "base/bytes.hpp"

namespace coffer::crypto::der {

// X.690 8.1.2: universal tags are their number, constructed ones with bit 6.
enum Tag : uint8_t {
    Boolean = 0x01,
    Integer = 0x02,
    BitString = 0x03,
    OctetString = 0x04,
    Null = 0x05,
    ObjectIdentifier = 0x06,
    Enumerated = 0x0A,
    Utf8String = 0x0C,
    UtcTime = 0x17,
    GeneralizedTime = 0x18,
    Sequence = 0x30,
    Set = 0x31,
};
// Context-specific tags, [n].
constexpr uint8_t implicit(unsigned number) noexcept {
    return static_cast<uint8_t>(0x80U | number);
}
constexpr uint8_t constructed(unsigned number) noexcept {
    return static_cast<uint8_t>(0xA0U | number);
}

ByteVector element(uint8_t tag, Bytes content);
// The parts one behind the other as content.
ByteVector element(uint8_t tag, std::initializer_list<Bytes> parts);

inline ByteVector sequence(std::initializer_list<Bytes> parts) {
    return element(Sequence, parts);
}
// SET OF: X.690 11.6 has the elements in order of their encodings.
ByteVector set_of(std::initializer_list<Bytes> parts);
// "2.23.133.8.1": at least two arcs, each a number below 2^32. An assertion: identifiers are constants.
ByteVector oid(std::string_view dotted);
ByteVector boolean(bool value);
ByteVector integer(uint64_t value);
// An unsigned number of any size, most significant octet first.
ByteVector integer(Bytes magnitude);
ByteVector utf8(std::string_view text);
ByteVector octets(Bytes content);
// Whole octets.
ByteVector bits(Bytes content);
// Seconds since 1970-01-01 UTC, in the years 1950 to 9999. Certificates have the years to 2049 in two digits (RFC 5280,
// 4.1.2.5), attribute certificates have four digits always (RFC 5755, 4.2.6).
ByteVector certificate_time(int64_t seconds);
ByteVector generalized_time(int64_t seconds);

} // namespace coffer::crypto::der
