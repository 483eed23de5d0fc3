#include "base/tagged.hpp"

#include <gtest/gtest.h>

namespace coffer {
namespace {

struct Inner {
    uint8_t level = 0;
    template <class V>
    void fields(V& v) {
        v.field(1, level);
    }
};

struct Sample {
    uint32_t number = 7;
    bool flag = false;
    std::array<uint16_t, 3> words{};
    std::vector<Inner> items;
    std::array<Inner, 2> pair{};
    std::string name;
    ByteVector blob;
    template <class V>
    void fields(V& v) {
        v.required(1, number);
        v.field(2, flag);
        v.field(3, words);
        v.field(4, items);
        v.field(5, pair);
        v.field(6, name);
        v.field(7, blob);
    }
};

Sample filled() {
    Sample sample;
    sample.number = 0x12345678;
    sample.flag = true;
    sample.words = {1, 2, 3};
    sample.items = {{4}, {5}, {6}};
    sample.pair = {Inner{8}, Inner{9}};
    sample.name = "pit";
    sample.blob = {std::byte{1}, std::byte{2}};
    return sample;
}

TEST(Tagged, GoesThereAndBack) {
    auto bytes = encode_fields(filled());
    Sample back;
    auto result = decode_fields(bytes, back);
    ASSERT_TRUE(result) << result.error().message();
    EXPECT_EQ(back.number, 0x12345678U);
    EXPECT_TRUE(back.flag);
    EXPECT_EQ(back.words[2], 3);
    ASSERT_EQ(back.items.size(), 3U);
    EXPECT_EQ(back.items[2].level, 6);
    EXPECT_EQ(back.pair[1].level, 9);
    EXPECT_EQ(back.name, "pit");
    EXPECT_EQ(back.blob, filled().blob);
}

TEST(Tagged, EveryTruncationIsAnErrorAndChangesNothing) {
    auto bytes = encode_fields(filled());
    size_t refused = 0;
    for (size_t size = 0; size < bytes.size(); ++size) {
        Sample target;
        target.number = 99;
        if (!decode_fields(Bytes(bytes).first(size), target)) {
            ++refused;
            EXPECT_EQ(target.number, 99U);
        }
    }
    // Only a cut between two fields, behind the required one, is a state of its own: there are six of them.
    EXPECT_EQ(refused, bytes.size() - 6);
}

TEST(Tagged, DoubledTagIsAnError) {
    auto bytes = encode_fields(Inner{1});
    auto twice = bytes;
    append(twice, bytes);
    Inner inner;
    EXPECT_FALSE(decode_fields(twice, inner));
}

TEST(Tagged, UnknownTagIsSkipped) {
    auto bytes = encode_fields(filled());
    Inner only_level;
    ByteVector unknown(6 + 1);
    store_le<uint16_t>(unknown, 0, 900);
    store_le<uint32_t>(unknown, 2, 1);
    append(bytes, unknown);
    Sample back;
    EXPECT_TRUE(decode_fields(bytes, back));
}

}  // namespace
}  // namespace coffer
