// The codec of saved state: any bytes decode or are refused, and what decodes encodes to something that decodes alike.
#include "base/tagged.hpp"

namespace {

using namespace coffer;

struct Inner {
    uint8_t level = 0;
    bool flag = false;
    template <class V>
    void fields(V& v) {
        v.field(1, level);
        v.field(2, flag);
    }
};

struct Outer {
    uint32_t number = 0;
    std::array<uint16_t, 3> words{};
    std::vector<Inner> items;
    std::array<Inner, 2> pair{};
    ByteVector blob;
    std::string name;
    template <class V>
    void fields(V& v) {
        v.required(1, number);
        v.field(2, words);
        v.field(3, items);
        v.field(4, pair);
        v.field(5, blob);
        v.field(6, name);
    }
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    Outer first;
    if (!decode_fields(std::as_bytes(std::span(data, size)), first)) return 0;
    auto encoded = encode_fields(first);
    Outer second;
    COFFER_ASSERT(decode_fields(encoded, second).has_value());
    COFFER_ASSERT(encode_fields(second) == encoded);
    return 0;
}
