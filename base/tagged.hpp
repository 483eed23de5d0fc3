// The tagged codec of saved state.
//
// A unit (one device's state) is a sequence of fields: u16 tag, u32 length, bytes; little-endian. Tags of a saved struct
// are never reused; a reader skips tags it does not know and keeps the default of a field that is absent unless the
// field is required. A saved struct describes itself once, for both directions:
//
//     struct PitState {
//         uint16_t counter = 0;
//         template <class V> void fields(V& v) { v.field(1, counter); }
//     };
//
// Integers, bools, enums, std::array of them, ByteVector, std::string and nested structs (and vectors of these) are
// fields. Decoding is bounded: nothing is allocated past the bytes at hand.
#pragma once

#include <array>
#include <concepts>
#include <string>
#include <type_traits>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer {

class FieldWriter;
class FieldReader;

template <class T>
concept SavedStruct = std::is_class_v<T> && requires(T& t, FieldWriter& w, FieldReader& r) {
    t.fields(w);
    t.fields(r);
};
template <class T>
concept SavedScalar = std::is_integral_v<T> || std::is_enum_v<T>;

class FieldWriter {
public:
    template <class T>
    void field(uint16_t tag, T& value) {
        ByteVector bytes;
        encode(bytes, value);
        put_header(tag, bytes.size());
        append(m_bytes, bytes);
    }
    template <class T>
    void required(uint16_t tag, T& value) {
        field(tag, value);
    }
    ByteVector take() && { return std::move(m_bytes); }

private:
    void put_header(uint16_t tag, size_t length);
    template <SavedScalar T>
    static void encode(ByteVector& to, T const& value) {
        append(to, object_bytes(value));
    }
    template <SavedScalar T, size_t N>
    static void encode(ByteVector& to, std::array<T, N> const& values) {
        append(to, std::as_bytes(std::span(values)));
    }
    static void encode(ByteVector& to, ByteVector const& value) { append(to, value); }
    static void encode(ByteVector& to, std::string const& value) { append(to, as_bytes(value)); }
    template <class T>
        requires SavedStruct<T>
    static void encode(ByteVector& to, T& value) {
        FieldWriter nested;
        value.fields(nested);
        append(to, nested.m_bytes);
    }
    template <class T>
        requires(!std::is_same_v<T, std::byte>)
    static void encode(ByteVector& to, std::vector<T>& values) {
        for (auto& value : values) {
            ByteVector item;
            encode(item, value);
            ByteVector length(4);
            store_le<uint32_t>(length, 0, static_cast<uint32_t>(item.size()));
            append(to, length);
            append(to, item);
        }
    }
    template <class T, size_t N>
        requires SavedStruct<T>
    static void encode(ByteVector& to, std::array<T, N>& values) {
        for (auto& value : values) {
            ByteVector item;
            encode(item, value);
            ByteVector length(4);
            store_le<uint32_t>(length, 0, static_cast<uint32_t>(item.size()));
            append(to, length);
            append(to, item);
        }
    }

    ByteVector m_bytes;
};

class FieldReader {
public:
    // Indexes the fields; malformed framing or a doubled tag shows in status().
    explicit FieldReader(Bytes bytes);

    template <class T>
    void field(uint16_t tag, T& value) {
        if (auto const* entry = find(tag)) check(decode(entry->bytes, value), tag);
    }
    template <class T>
    void required(uint16_t tag, T& value) {
        if (!find(tag)) fail(tag, "is missing");
        else field(tag, value);
    }
    // Whether everything asked for so far was well-formed.
    Result<void> status() const;

private:
    struct Entry {
        uint16_t tag;
        Bytes bytes;
    };
    Entry const* find(uint16_t tag) const noexcept;
    void check(bool decoded, uint16_t tag) {
        if (!decoded) fail(tag, "is malformed");
    }
    void fail(uint16_t tag, std::string_view what);

    template <SavedScalar T>
    static bool decode(Bytes from, T& value) {
        if (from.size() != sizeof value) return false;
        if constexpr (std::is_same_v<T, bool>) {
            value = from[0] != std::byte{0};
        } else {
            std::memcpy(&value, from.data(), sizeof value);
        }
        return true;
    }
    template <SavedScalar T, size_t N>
    static bool decode(Bytes from, std::array<T, N>& values) {
        if (from.size() != sizeof values) return false;
        std::memcpy(values.data(), from.data(), sizeof values);
        return true;
    }
    static bool decode(Bytes from, ByteVector& value) {
        value.assign(from.begin(), from.end());
        return true;
    }
    static bool decode(Bytes from, std::string& value) {
        value.clear();
        for (std::byte b : from) value.push_back(static_cast<char>(b));
        return true;
    }
    template <class T>
        requires SavedStruct<T>
    static bool decode(Bytes from, T& value) {
        FieldReader nested(from);
        value.fields(nested);
        return nested.m_failure.empty();
    }
    template <class F>
    static bool for_each_item(Bytes from, F&& use) {
        while (!from.empty()) {
            if (from.size() < 4) return false;
            size_t length = load_le<uint32_t>(from);
            from = from.subspan(4);
            if (length > from.size() || !use(from.first(length))) return false;
            from = from.subspan(length);
        }
        return true;
    }
    template <class T>
        requires(!std::is_same_v<T, std::byte>)
    static bool decode(Bytes from, std::vector<T>& values) {
        values.clear();
        return for_each_item(from, [&](Bytes item) {
            values.emplace_back();
            return decode(item, values.back());
        });
    }
    template <class T, size_t N>
        requires SavedStruct<T>
    static bool decode(Bytes from, std::array<T, N>& values) {
        size_t index = 0;
        bool fits = for_each_item(from, [&](Bytes item) { return index < N && decode(item, values[index++]); });
        return fits && index == N;
    }

    std::vector<Entry> m_entries;
    std::string m_failure;
};

template <SavedStruct T>
ByteVector encode_fields(T state) {
    FieldWriter writer;
    state.fields(writer);
    return std::move(writer).take();
}

// All or nothing: `state` is as it was where decoding fails.
template <SavedStruct T>
Result<void> decode_fields(Bytes bytes, T& state) {
    T decoded{};
    FieldReader reader(bytes);
    decoded.fields(reader);
    TRY(reader.status());
    state = std::move(decoded);
    return {};
}

}  // namespace coffer
