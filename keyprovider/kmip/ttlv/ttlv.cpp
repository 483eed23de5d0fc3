#include "keyprovider/kmip/ttlv/ttlv.hpp"

#include <algorithm>

namespace coffer::kmip {

namespace {

constexpr size_t k_alignment = 8;

uint32_t load_tag(Bytes header) {
    return load_be<uint32_t>(header) >> 8;
}

Error malformed(Tag tag, std::string_view what) {
    return make_error(ErrorCode::Corrupt, "malformed KMIP message: item {:06X} {}", static_cast<uint32_t>(tag), what);
}

// Section 9.1.1.3: the length of each type.
bool length_fits(Type type, size_t length) noexcept {
    switch (type) {
    case Type::Integer:
    case Type::Enumeration:
    case Type::Interval: return length == 4;
    case Type::LongInteger:
    case Type::Boolean:
    case Type::DateTime: return length == 8;
    case Type::BigInteger: return length != 0 && length % 8 == 0;
    case Type::Structure: return length % 8 == 0;
    case Type::TextString:
    case Type::ByteString: return true;
    }
    return false;
}

// The item at the front of bytes, its size with padding taken off them.
Result<Item> take_item(Bytes& bytes) {
    if (bytes.size() < k_item_header)
        return make_error(ErrorCode::Corrupt, "malformed KMIP message: {} bytes where an item should begin",
                          bytes.size());
    Item item;
    item.tag = static_cast<Tag>(load_tag(bytes));
    item.type = static_cast<Type>(load_le<uint8_t>(bytes, 3));
    uint64_t const size = item_size(bytes);
    size_t const length = load_be<uint32_t>(bytes, 4);
    if (size > bytes.size()) return malformed(item.tag, "is longer than what holds it");
    if (!length_fits(item.type, length)) return malformed(item.tag, "has an unknown type, or a wrong length for it");
    item.value = bytes.subspan(k_item_header, length);
    if (item.type == Type::Boolean && load_be<uint64_t>(item.value) > 1)
        return malformed(item.tag, "is a boolean that is neither true nor false");
    bytes = bytes.subspan(static_cast<size_t>(size));
    return item;
}

// Recursion is bounded by k_max_depth.
Result<void> check_content(Bytes content, size_t depth, size_t& items) {
    while (!content.empty()) {
        if (++items > k_max_items)
            return make_error(ErrorCode::Corrupt, "malformed KMIP message: more than {} items", k_max_items);
        auto item = TRY(take_item(content));
        if (item.type != Type::Structure) continue;
        if (depth == k_max_depth) return malformed(item.tag, "is nested too deeply");
        TRY(check_content(item.value, depth + 1, items));
    }
    return {};
}

} // namespace

uint64_t item_size(Bytes header) {
    return k_item_header + align_up(load_be<uint32_t>(header, 4), k_alignment);
}

Result<Item> parse(Bytes message) {
    Bytes rest = message;
    auto item = TRY(take_item(rest));
    if (!rest.empty())
        return make_error(ErrorCode::Corrupt, "malformed KMIP message: {} bytes behind its end", rest.size());
    size_t items = 1;
    if (item.type == Type::Structure) TRY(check_content(item.value, 1, items));
    return item;
}

std::string printable(std::string_view text, size_t limit) {
    std::string shown(text.substr(0, limit));
    std::replace_if(
        shown.begin(), shown.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return shown;
}

void Writer::item(Tag tag, Type type, Bytes value) {
    uint64_t const size = k_item_header + align_up(value.size(), k_alignment);
    if (m_failed || size > m_to.size() - m_used || value.size() > UINT32_MAX) {
        m_failed = true;
        return;
    }
    MutBytes const to = m_to.subspan(m_used, static_cast<size_t>(size));
    store_be<uint32_t>(to, 0, static_cast<uint32_t>(tag) << 8 | static_cast<uint32_t>(type));
    store_be<uint32_t>(to, 4, static_cast<uint32_t>(value.size()));
    if (!value.empty()) std::memcpy(to.data() + k_item_header, value.data(), value.size());
    std::fill(to.begin() + static_cast<ptrdiff_t>(k_item_header + value.size()), to.end(), std::byte{0});
    m_used += static_cast<size_t>(size);
}

void Writer::begin(Tag tag) {
    if (m_depth == k_max_depth) m_failed = true;
    size_t const at = m_used;
    item(tag, Type::Structure, {});
    if (!m_failed) m_open[m_depth++] = at;
}

void Writer::end() {
    if (m_failed || m_depth == 0) {
        m_failed = true;
        return;
    }
    size_t const at = m_open[--m_depth];
    store_be<uint32_t>(m_to, at + 4, static_cast<uint32_t>(m_used - at - k_item_header));
}

namespace {
template <class T>
std::array<std::byte, sizeof(T)> big_endian(T value) {
    std::array<std::byte, sizeof(T)> bytes{};
    store_be<std::make_unsigned_t<T>>(bytes, 0, static_cast<std::make_unsigned_t<T>>(value));
    return bytes;
}
} // namespace

void Writer::integer(Tag tag, int32_t value) {
    item(tag, Type::Integer, big_endian(value));
}
void Writer::long_integer(Tag tag, int64_t value) {
    item(tag, Type::LongInteger, big_endian(value));
}
void Writer::boolean(Tag tag, bool value) {
    item(tag, Type::Boolean, big_endian(uint64_t{value}));
}
void Writer::date_time(Tag tag, int64_t seconds) {
    item(tag, Type::DateTime, big_endian(seconds));
}
void Writer::interval(Tag tag, uint32_t seconds) {
    item(tag, Type::Interval, big_endian(seconds));
}
void Writer::enumeration(Tag tag, uint32_t value) {
    item(tag, Type::Enumeration, big_endian(value));
}
void Writer::text(Tag tag, std::string_view value) {
    item(tag, Type::TextString, as_bytes(value));
}
void Writer::bytes(Tag tag, Bytes value) {
    item(tag, Type::ByteString, value);
}
void Writer::big_integer(Tag tag, Bytes value) {
    if (!length_fits(Type::BigInteger, value.size())) m_failed = true;
    item(tag, Type::BigInteger, value);
}

Result<Bytes> Writer::finish() const {
    if (m_failed || m_depth != 0)
        return make_error(ErrorCode::Internal, "a KMIP message does not fit {} bytes, or is not complete", m_to.size());
    return Bytes(m_to.first(m_used));
}

Result<int32_t> Item::integer() const {
    if (type != Type::Integer) return malformed(tag, "is no integer");
    return static_cast<int32_t>(load_be<uint32_t>(value));
}
Result<int64_t> Item::long_integer() const {
    if (type != Type::LongInteger) return malformed(tag, "is no long integer");
    return static_cast<int64_t>(load_be<uint64_t>(value));
}
Result<int64_t> Item::date_time() const {
    if (type != Type::DateTime) return malformed(tag, "is no time");
    return static_cast<int64_t>(load_be<uint64_t>(value));
}
Result<uint32_t> Item::interval() const {
    if (type != Type::Interval) return malformed(tag, "is no interval");
    return load_be<uint32_t>(value);
}
Result<uint32_t> Item::enumeration() const {
    if (type != Type::Enumeration) return malformed(tag, "is no enumeration");
    return load_be<uint32_t>(value);
}
Result<bool> Item::boolean() const {
    if (type != Type::Boolean) return malformed(tag, "is no boolean");
    return load_be<uint64_t>(value) == 1;
}
Result<std::string_view> Item::text() const {
    if (type != Type::TextString) return malformed(tag, "is no text");
    // SAFETY: char may alias any object ([basic.lval]) and has the same size and alignment.
    return std::string_view(reinterpret_cast<char const*>(value.data()), value.size());
}
Result<Bytes> Item::bytes() const {
    if (type != Type::ByteString) return malformed(tag, "is no byte string");
    return value;
}
Result<Structure> Item::structure() const {
    if (type != Type::Structure) return malformed(tag, "is no structure");
    return Structure(value);
}

Item Structure::Iterator::operator*() const {
    Bytes rest = m_rest;
    auto item = take_item(rest);
    COFFER_ASSERT(item.has_value()); // parse() saw the same bytes
    return *item;
}

Structure::Iterator& Structure::Iterator::operator++() {
    m_rest = m_rest.subspan(static_cast<size_t>(item_size(m_rest)));
    return *this;
}

std::optional<Item> Structure::find(Tag tag) const {
    for (Item item : *this)
        if (item.tag == tag) return item;
    return std::nullopt;
}

Result<Item> Structure::require(Tag tag) const {
    if (auto item = find(tag)) return *item;
    return malformed(tag, "is missing");
}

Result<int32_t> Structure::require_integer(Tag tag) const {
    return TRY(require(tag)).integer();
}
Result<uint32_t> Structure::require_enumeration(Tag tag) const {
    return TRY(require(tag)).enumeration();
}
Result<std::string_view> Structure::require_text(Tag tag) const {
    return TRY(require(tag)).text();
}
Result<Bytes> Structure::require_bytes(Tag tag) const {
    return TRY(require(tag)).bytes();
}
Result<Structure> Structure::require_structure(Tag tag) const {
    return TRY(require(tag)).structure();
}

} // namespace coffer::kmip
