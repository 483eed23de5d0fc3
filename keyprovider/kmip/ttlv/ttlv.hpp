// TTLV, KMIP's encoding: tag (3 bytes), type (1), length (4, big-endian, without padding), value padded to 8 bytes.
// KMIP specification 1.4 section 9.1. Messages hold keys, so neither side of this codec allocates: the caller owns all
// bytes.
#pragma once

#include <array>
#include <optional>
#include <string_view>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "keyprovider/kmip/ttlv/ttlv_spec.hpp"

namespace coffer::kmip {

constexpr size_t k_item_header = 8;
constexpr size_t k_max_depth = 16;   // structures in each other; KMIP's own messages need 8
constexpr size_t k_max_items = 4096; // of all depths of one message

// Appends items to a buffer of fixed size; past its end, or with more open structures than k_max_depth, nothing is
// written any more and finish() fails. Not thread-safe.
class Writer {
public:
    explicit Writer(MutBytes to) : m_to(to) {}

    void begin(Tag tag);
    void end();

    void integer(Tag tag, int32_t value);
    void long_integer(Tag tag, int64_t value);
    void boolean(Tag tag, bool value);
    void date_time(Tag tag, int64_t seconds);
    void interval(Tag tag, uint32_t seconds);
    void text(Tag tag, std::string_view value);
    void bytes(Tag tag, Bytes value);
    void big_integer(Tag tag, Bytes value); // two's complement, big-endian; the caller pads to a multiple of 8 bytes
    void enumeration(Tag tag, uint32_t value);
    template <class E>
    requires std::is_enum_v<E>
    void enumeration(Tag tag, E value) { enumeration(tag, static_cast<uint32_t>(value)); }

    // The encoded bytes. Internal where they did not fit or a structure is still open.
    Result<Bytes> finish() const;

private:
    void item(Tag tag, Type type, Bytes value);

    MutBytes m_to;
    size_t m_used = 0;
    std::array<size_t, k_max_depth> m_open{}; // where the open structures begin
    size_t m_depth = 0;
    bool m_failed = false;
};

class Structure;

// One item of a message that parse() accepted; points into the message's bytes. A value of another type than asked for
// is Corrupt, with the tag in the message.
struct Item {
    Tag tag{};
    Type type{};
    Bytes value; // without padding

    Result<int32_t> integer() const;
    Result<int64_t> long_integer() const;
    Result<int64_t> date_time() const;
    Result<uint32_t> interval() const;
    Result<uint32_t> enumeration() const;
    Result<bool> boolean() const;
    Result<std::string_view> text() const; // any bytes: see printable()
    Result<Bytes> bytes() const;
    Result<Structure> structure() const;
};

// The items of a structure, in their order. Cheap to copy.
class Structure {
public:
    class Iterator {
    public:
        explicit Iterator(Bytes rest) : m_rest(rest) {}
        Item operator*() const;
        Iterator& operator++();
        bool operator==(Iterator const& other) const { return m_rest.size() == other.m_rest.size(); }

    private:
        Bytes m_rest;
    };

    Iterator begin() const { return Iterator(m_content); }
    Iterator end() const { return Iterator(m_content.last(0)); }

    // The first item of the tag.
    std::optional<Item> find(Tag tag) const;
    // Corrupt where there is none.
    Result<Item> require(Tag tag) const;
    // require() and the item's own conversion.
    Result<int32_t> require_integer(Tag tag) const;
    Result<uint32_t> require_enumeration(Tag tag) const;
    Result<std::string_view> require_text(Tag tag) const;
    Result<Bytes> require_bytes(Tag tag) const;
    Result<Structure> require_structure(Tag tag) const;

private:
    friend Result<Item> parse(Bytes message);
    friend struct Item;
    explicit Structure(Bytes content) : m_content(content) {}

    Bytes m_content; // checked by parse()
};

// Checks all of a message, whose size the caller bounded: one item that fills it, every length within what holds it and
// right for its type, known types, at most k_max_depth and k_max_items. Corrupt otherwise. Nothing is allocated.
Result<Item> parse(Bytes message);

// The size of the item, header and padding included, whose first k_item_header bytes these are.
uint64_t item_size(Bytes header);

// Text from a peer as it may be shown to a user: printable ASCII, other bytes as '?', at most `limit` characters.
std::string printable(std::string_view text, size_t limit = 200);

} // namespace coffer::kmip
