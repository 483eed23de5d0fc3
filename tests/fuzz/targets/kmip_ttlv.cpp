// TTLV: any bytes are refused, or every item of them can be read, stays within the message, and encodes to bytes that
// mean the same.
#include <vector>

#include "keyprovider/kmip/ttlv/ttlv.hpp"

namespace {

using namespace coffer;
using namespace coffer::kmip;

void write_again(Writer& writer, Item const& item) {
    switch (item.type) {
    case Type::Structure: {
        writer.begin(item.tag);
        auto structure = item.structure();
        for (Item inner : *structure) write_again(writer, inner);
        writer.end();
        break;
    }
    case Type::Integer: writer.integer(item.tag, *item.integer()); break;
    case Type::LongInteger: writer.long_integer(item.tag, *item.long_integer()); break;
    case Type::BigInteger: writer.big_integer(item.tag, item.value); break;
    case Type::Enumeration: writer.enumeration(item.tag, *item.enumeration()); break;
    case Type::Boolean: writer.boolean(item.tag, *item.boolean()); break;
    case Type::TextString: writer.text(item.tag, *item.text()); break;
    case Type::ByteString: writer.bytes(item.tag, *item.bytes()); break;
    case Type::DateTime: writer.date_time(item.tag, *item.date_time()); break;
    case Type::Interval: writer.interval(item.tag, *item.interval()); break;
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    Bytes const input = std::as_bytes(std::span(data, size));
    auto parsed = parse(input);
    if (!parsed) return 0;
    ByteVector again(input.size());
    Writer writer(again);
    write_again(writer, *parsed);
    auto written = writer.finish();
    COFFER_ASSERT(written.has_value() && written->size() == input.size());
    // Padding, which may hold anything, is zero in what we write: a second round changes nothing more.
    auto reparsed = parse(*written);
    COFFER_ASSERT(reparsed.has_value());
    ByteVector third(input.size());
    Writer third_writer(third);
    write_again(third_writer, *reparsed);
    COFFER_ASSERT(third_writer.finish().has_value() && third == again);
    return 0;
}
