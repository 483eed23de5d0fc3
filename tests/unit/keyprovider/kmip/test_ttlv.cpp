// TTLV against the examples of the specification, and against malformed input.
#include <gtest/gtest.h>

#include "keyprovider/kmip/client/messages.hpp"
#include "keyprovider/kmip/ttlv/ttlv.hpp"

namespace coffer::kmip {
namespace {

ByteVector hex(std::string_view text) {
    ByteVector bytes;
    int high = -1;
    for (char c : text) {
        if (c == ' ' || c == '|') continue;
        int digit = c <= '9' ? c - '0' : c - 'A' + 10;
        if (high >= 0) bytes.push_back(static_cast<std::byte>(high << 4 | digit));
        high = high < 0 ? digit : -1;
    }
    EXPECT_EQ(high, -1);
    return bytes;
}

// KMIP 1.4 section 9.1.2, all of its examples.
constexpr Tag k_tag{0x420020};
constexpr std::string_view k_integer = "42 00 20 | 02 | 00 00 00 04 | 00 00 00 08 00 00 00 00";
constexpr std::string_view k_long_integer = "42 00 20 | 03 | 00 00 00 08 | 01 B6 9B 4B A5 74 92 00";
constexpr std::string_view k_big_integer =
    "42 00 20 | 04 | 00 00 00 10 | 00 00 00 00 03 FD 35 EB 6B C2 DF 46 18 08 00 00";
constexpr std::string_view k_enumeration = "42 00 20 | 05 | 00 00 00 04 | 00 00 00 FF 00 00 00 00";
constexpr std::string_view k_boolean = "42 00 20 | 06 | 00 00 00 08 | 00 00 00 00 00 00 00 01";
constexpr std::string_view k_text = "42 00 20 | 07 | 00 00 00 0B | 48 65 6C 6C 6F 20 57 6F 72 6C 64 00 00 00 00 00";
constexpr std::string_view k_byte_string = "42 00 20 | 08 | 00 00 00 03 | 01 02 03 00 00 00 00 00";
constexpr std::string_view k_date_time = "42 00 20 | 09 | 00 00 00 08 | 00 00 00 00 47 DA 67 F8";
constexpr std::string_view k_interval = "42 00 20 | 0A | 00 00 00 04 | 00 0D 2F 00 00 00 00 00";
constexpr std::string_view k_structure =
    "42 00 20 | 01 | 00 00 00 20 | 42 00 04 | 05 | 00 00 00 04 | 00 00 00 FE 00 00 00 00 | 42 00 05 | 02 | 00 00 00 "
    "04 | 00 00 00 FF 00 00 00 00";

template <class Write>
ByteVector written(Write write) {
    ByteVector buffer(512);
    Writer writer(buffer);
    write(writer);
    auto bytes = writer.finish();
    EXPECT_TRUE(bytes);
    return {bytes->begin(), bytes->end()};
}

TEST(Ttlv, WritesTheExamplesOfTheSpecification) {
    EXPECT_EQ(written([](Writer& w) { w.integer(k_tag, 8); }), hex(k_integer));
    EXPECT_EQ(written([](Writer& w) { w.long_integer(k_tag, 123456789000000000); }), hex(k_long_integer));
    EXPECT_EQ(written([](Writer& w) { w.big_integer(k_tag, hex("00 00 00 00 03 FD 35 EB 6B C2 DF 46 18 08 00 00")); }),
              hex(k_big_integer));
    EXPECT_EQ(written([](Writer& w) { w.enumeration(k_tag, 255U); }), hex(k_enumeration));
    EXPECT_EQ(written([](Writer& w) { w.boolean(k_tag, true); }), hex(k_boolean));
    EXPECT_EQ(written([](Writer& w) { w.text(k_tag, "Hello World"); }), hex(k_text));
    EXPECT_EQ(written([](Writer& w) { w.bytes(k_tag, hex("01 02 03")); }), hex(k_byte_string));
    EXPECT_EQ(written([](Writer& w) { w.date_time(k_tag, 1205495800); }), hex(k_date_time));
    EXPECT_EQ(written([](Writer& w) { w.interval(k_tag, 10 * 24 * 3600); }), hex(k_interval));
    EXPECT_EQ(written([](Writer& w) {
                  w.begin(k_tag);
                  w.enumeration(Tag{0x420004}, 254U);
                  w.integer(Tag{0x420005}, 255);
                  w.end();
              }),
              hex(k_structure));
}

TEST(Ttlv, ReadsTheExamplesOfTheSpecification) {
    auto item = [](std::string_view text) {
        static ByteVector bytes; // what the item points into
        bytes = hex(text);
        auto parsed = parse(bytes);
        EXPECT_TRUE(parsed) << text;
        EXPECT_EQ(parsed->tag, k_tag);
        return *parsed;
    };
    EXPECT_EQ(*item(k_integer).integer(), 8);
    EXPECT_EQ(*item(k_long_integer).long_integer(), 123456789000000000);
    EXPECT_EQ(item(k_big_integer).value.size(), 16U);
    EXPECT_EQ(*item(k_enumeration).enumeration(), 255U);
    EXPECT_TRUE(*item(k_boolean).boolean());
    EXPECT_EQ(*item(k_text).text(), "Hello World");
    auto bytes = item(k_byte_string).bytes();
    EXPECT_EQ(ByteVector(bytes->begin(), bytes->end()), hex("01 02 03"));
    EXPECT_EQ(*item(k_date_time).date_time(), 1205495800);
    EXPECT_EQ(*item(k_interval).interval(), 864000U);
    auto structure = item(k_structure).structure();
    ASSERT_TRUE(structure);
    EXPECT_EQ(*structure->find(Tag{0x420004})->enumeration(), 254U);
    EXPECT_EQ(*structure->require(Tag{0x420005})->integer(), 255);
    EXPECT_FALSE(structure->find(Tag{0x420006}));
    EXPECT_EQ(structure->require(Tag{0x420006}).error().code(), ErrorCode::Corrupt);
}

// KMIP Use Cases 1.0: the request of 3.1.1 (Create), request and answer of 12.1 (a Query whose answer would be too
// large).
constexpr std::string_view k_create_request =
    "42007801000001204200770100000038420069010000002042006A0200000004000000010000000042006B02000000040000000000000000"
    "42000D0200000004000000010000000042000F01000000D842005C0500000004000000010000000042007901000000C04200570500000004"
    "000000020000000042009101000000A8420008010000003042000A070000001743727970746F6772617068696320416C676F726974686D00"
    "42000B05000000040000000300000000420008010000003042000A070000001443727970746F67726170686963204C656E67746800000000"
    "42000B02000000040000008000000000420008010000003042000A070000001843727970746F67726170686963205573616765204D61736B"
    "42000B02000000040000000C00000000";
constexpr std::string_view k_query_request =
    "42007801000000904200770100000048420069010000002042006A0200000004000000010000000042006B02000000040000000000000000"
    "4200500200000004000001000000000042000D0200000004000000010000000042000F010000003842005C05000000040000001800000000"
    "42007901000000204200740500000004000000010000000042007405000000040000000200000000";
constexpr std::string_view k_query_refused =
    "42007B01000000C842007A0100000048420069010000002042006A0200000004000000010000000042006B02000000040000000000000000"
    "4200920900000008000000004B7918AA42000D0200000004000000010000000042000F010000007042007F05000000040000000100000000"
    "42007E0500000004000000020000000042007D0700000043526573706F6E73652073697A653A203536382C204D6178696D756D2052657370"
    "6F6E73652053697A6520696E6469636174656420696E20726571756573743A203235360000000000";

void begin_request(Writer& w, std::optional<int32_t> maximum, Operation operation) {
    w.begin(Tag::RequestMessage);
    w.begin(Tag::RequestHeader);
    w.begin(Tag::ProtocolVersion);
    w.integer(Tag::ProtocolVersionMajor, 1);
    w.integer(Tag::ProtocolVersionMinor, 0);
    w.end();
    if (maximum) w.integer(Tag::MaximumResponseSize, *maximum);
    w.integer(Tag::BatchCount, 1);
    w.end();
    w.begin(Tag::BatchItem);
    w.enumeration(Tag::Operation, operation);
    w.begin(Tag::RequestPayload);
}

TEST(Ttlv, WritesTheMessagesOfTheUseCases) {
    EXPECT_EQ(written([](Writer& w) {
                  auto attribute = [&w](std::string_view name, std::function<void()> const& value) {
                      w.begin(Tag::Attribute);
                      w.text(Tag::AttributeName, name);
                      value();
                      w.end();
                  };
                  begin_request(w, {}, Operation::Create);
                  w.enumeration(Tag::ObjectType, 2U);
                  w.begin(Tag::TemplateAttribute);
                  attribute("Cryptographic Algorithm", [&w] { w.enumeration(Tag::AttributeValue, 3U); });
                  attribute("Cryptographic Length", [&w] { w.integer(Tag::AttributeValue, 128); });
                  attribute("Cryptographic Usage Mask", [&w] { w.integer(Tag::AttributeValue, 0x0C); });
                  for (int open = 0; open < 4; ++open) w.end();
              }),
              hex(k_create_request));
    EXPECT_EQ(written([](Writer& w) {
                  begin_request(w, 256, Operation::Query);
                  w.enumeration(Tag::QueryFunction, 1U);
                  w.enumeration(Tag::QueryFunction, 2U);
                  for (int open = 0; open < 3; ++open) w.end();
              }),
              hex(k_query_request));
}

TEST(Ttlv, ReadsTheMessagesOfTheUseCases) {
    auto const bytes = hex(k_query_refused);
    auto answer = decode_response(crypto::SecretBytes::copy_of(bytes), {Operation::Query, 1});
    ASSERT_TRUE(answer);
    auto const* refusal = std::get_if<Refusal>(&*answer);
    ASSERT_NE(refusal, nullptr);
    EXPECT_EQ(static_cast<uint32_t>(refusal->reason), 2U); // Response Too Large
    EXPECT_EQ(refusal->text, "Response size: 568, Maximum Response Size indicated in request: 256");
    // Requests are of the same form as what we read, and are no answers.
    EXPECT_TRUE(parse(hex(k_create_request)));
    EXPECT_FALSE(decode_response(crypto::SecretBytes::copy_of(hex(k_query_request)), {Operation::Query, 1}));
}

TEST(Ttlv, NegativeNumbersKeepTheirSign) {
    auto bytes = written([](Writer& w) { w.integer(k_tag, -2); });
    EXPECT_EQ(*parse(bytes)->integer(), -2);
    bytes = written([](Writer& w) { w.long_integer(k_tag, -3); });
    EXPECT_EQ(*parse(bytes)->long_integer(), -3);
}

TEST(Ttlv, AnotherTypeThanAskedForIsAnError) {
    for (auto text : {k_integer, k_long_integer, k_enumeration, k_boolean, k_text, k_byte_string, k_date_time,
                      k_interval, k_structure}) {
        auto bytes = hex(text);
        auto item = parse(bytes);
        ASSERT_TRUE(item);
        int accepted = item->integer().has_value() + item->long_integer().has_value() +
                       item->enumeration().has_value() + item->boolean().has_value() + item->text().has_value() +
                       item->bytes().has_value() + item->date_time().has_value() + item->interval().has_value() +
                       item->structure().has_value();
        EXPECT_EQ(accepted, 1) << text;
    }
}

void expect_refused(ByteVector const& bytes, std::string_view why) {
    auto parsed = parse(bytes);
    ASSERT_FALSE(parsed) << why;
    EXPECT_EQ(parsed.error().code(), ErrorCode::Corrupt) << why;
}

TEST(Ttlv, EveryTruncationAndExtensionIsRefused) {
    for (auto text : {k_integer, k_big_integer, k_text, k_structure}) {
        auto whole = hex(text);
        for (size_t size = 0; size < whole.size(); ++size)
            expect_refused({whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size)}, text);
        whole.push_back(std::byte{0});
        expect_refused(whole, text);
    }
}

TEST(Ttlv, WrongTypesAndLengthsAreRefused) {
    expect_refused(hex("42 00 20 | 00 | 00 00 00 04 | 00 00 00 08 00 00 00 00"), "type 0");
    expect_refused(hex("42 00 20 | 0B | 00 00 00 04 | 00 00 00 08 00 00 00 00"), "type 11");
    expect_refused(hex("42 00 20 | 02 | 00 00 00 08 | 00 00 00 08 00 00 00 00"), "a long integer");
    expect_refused(hex("42 00 20 | 03 | 00 00 00 04 | 00 00 00 08 00 00 00 00"), "a short long integer");
    expect_refused(hex("42 00 20 | 04 | 00 00 00 00"), "an empty big integer");
    expect_refused(hex("42 00 20 | 04 | 00 00 00 07 | 00 00 00 08 00 00 00 00"), "an unpadded big integer");
    expect_refused(hex("42 00 20 | 06 | 00 00 00 08 | 00 00 00 00 00 00 00 02"), "a boolean that is 2");
    expect_refused(hex("42 00 20 | 01 | 00 00 00 04 | 00 00 00 08 00 00 00 00"), "half an item");
    expect_refused(hex("42 00 20 | 07 | FF FF FF FF | 00 00 00 08 00 00 00 00"), "4 GiB");
    expect_refused(hex("42 00 20 | 08 | FF FF FF F9 | 00 00 00 08 00 00 00 00"), "4 GiB, which wraps when padded");
    expect_refused(hex("42 00 20 | 01 | 00 00 00 10 | 42 00 04 | 08 | 00 00 00 09 | 00 00 00 00 00 00 00 00"),
                   "longer than its structure");
}

ByteVector nested(size_t depth) {
    ByteVector bytes;
    for (size_t level = depth; level > 0; --level) {
        ByteVector header = hex("42 00 20 | 01 | 00 00 00 00");
        store_be<uint32_t>(header, 4, static_cast<uint32_t>((level - 1) * k_item_header));
        append(bytes, header);
    }
    return bytes;
}

TEST(Ttlv, DepthAndCountAreBounded) {
    EXPECT_TRUE(parse(nested(k_max_depth)));
    expect_refused(nested(k_max_depth + 1), "one too deep");
    expect_refused(nested(100'000), "far too deep");
    auto many = [](size_t count) {
        ByteVector bytes = hex("42 00 20 | 01 | 00 00 00 00");
        store_be<uint32_t>(bytes, 4, static_cast<uint32_t>(count * k_item_header));
        for (size_t i = 0; i < count; ++i) append(bytes, hex("42 00 20 | 07 | 00 00 00 00"));
        return bytes;
    };
    EXPECT_TRUE(parse(many(k_max_items - 1)));
    expect_refused(many(k_max_items), "one too many");
}

TEST(Ttlv, WriterStaysInItsBufferAndSaysSo) {
    for (size_t size = 0; size < 40; ++size) {
        ByteVector buffer(size + 8, std::byte{0xEE});
        Writer writer(MutBytes(buffer).first(size));
        writer.begin(k_tag);
        writer.text(k_tag, "Hello World");
        writer.integer(k_tag, 1);
        writer.end();
        EXPECT_FALSE(writer.finish()) << size;
        for (size_t i = size; i < buffer.size(); ++i) EXPECT_EQ(buffer[i], std::byte{0xEE}) << size;
    }
    ByteVector buffer(1000);
    Writer open(buffer);
    open.begin(k_tag);
    EXPECT_FALSE(open.finish());
    Writer closed(buffer);
    closed.end();
    EXPECT_FALSE(closed.finish());
    Writer deep(buffer);
    for (size_t i = 0; i <= k_max_depth; ++i) deep.begin(k_tag);
    EXPECT_FALSE(deep.finish());
}

TEST(Ttlv, ServersTextIsMadePrintable) {
    EXPECT_EQ(printable("a\x1b[31m\xff b\n"), "a?[31m? b?");
    EXPECT_EQ(printable(std::string(1000, 'x')).size(), 200U);
}

} // namespace
} // namespace coffer::kmip
