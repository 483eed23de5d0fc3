#include "devices/chipset/cfi_flash.hpp"

#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

using devices::FlashAccess;

struct FlashTest : testing::Test {
    static constexpr size_t k_block = 0x1000;
    ByteVector content = ByteVector(4 * k_block, std::byte{0x12});
    std::vector<bool> modes;
    std::vector<std::pair<uint64_t, uint64_t>> changes;
    devices::CfiFlash flash{"flash.vars",
                            content,
                            k_block,
                            FlashAccess::Writable,
                            {[this](bool array) { modes.push_back(array); },
                             [this](uint64_t offset, uint64_t length) { changes.emplace_back(offset, length); }}};

    void put(uint64_t offset, uint8_t value) { store<uint8_t>(flash, offset, value); }
    uint8_t get(uint64_t offset) { return load<uint8_t>(flash, offset); }
};

// How OVMF's driver tells flash from RAM and ROM.
TEST_F(FlashTest, IsDetectedAsFlash) {
    put(0, 0x50);
    EXPECT_EQ(get(0), 0x12);
    put(0, 0x70);
    EXPECT_EQ(get(0), 0x00);
    put(0, 0xFF);
    EXPECT_EQ(get(0), 0x12);
    EXPECT_EQ(modes, (std::vector<bool>{false, true}));
    EXPECT_TRUE(changes.empty());
}

TEST_F(FlashTest, ProgramsBytes) {
    for (uint64_t i = 0; i < 3; ++i) {
        put(0x1234 + i, 0x10);
        put(0x1234 + i, static_cast<uint8_t>(0xA0 + i));
    }
    EXPECT_EQ(get(0x1234), 0x80); // status: ready
    put(0x1234, 0xFF);
    EXPECT_EQ(get(0x1235), 0xA1);
    EXPECT_EQ(content[0x1236], std::byte{0xA2});
    EXPECT_EQ(content[0x1237], std::byte{0x12});
    EXPECT_EQ(changes.size(), 3U);
    EXPECT_EQ(changes[2], (std::pair<uint64_t, uint64_t>{0x1236, 1}));
    EXPECT_EQ(modes, (std::vector<bool>{false, true}));
}

TEST_F(FlashTest, ErasesOneBlock) {
    put(0x1800, 0x20);
    put(0x1800, 0xD0);
    put(0, 0xFF);
    EXPECT_EQ(content[0x0FFF], std::byte{0x12});
    EXPECT_EQ(content[0x1000], std::byte{0xFF});
    EXPECT_EQ(content[0x1FFF], std::byte{0xFF});
    EXPECT_EQ(content[0x2000], std::byte{0x12});
    EXPECT_EQ(changes.at(0), (std::pair<uint64_t, uint64_t>{0x1000, 0x1000}));
}

TEST_F(FlashTest, EraseWithoutConfirmationIsAnError) {
    put(0x1000, 0x20);
    put(0x1000, 0xFF);
    EXPECT_EQ(get(0), 0xB0);
    EXPECT_EQ(content[0x1000], std::byte{0x12});
    put(0, 0x50);
    EXPECT_EQ(get(0), 0x00);
}

TEST_F(FlashTest, ReadOnlyBankRefuses) {
    devices::CfiFlash code("flash.code", content, k_block, FlashAccess::ReadOnly, {});
    store<uint8_t>(code, 8, 0x40);
    store<uint8_t>(code, 8, 0x00);
    EXPECT_EQ(load<uint8_t>(code, 0) & 0x10, 0x10);
    store<uint8_t>(code, 8, 0x20);
    store<uint8_t>(code, 8, 0xD0);
    EXPECT_EQ(load<uint8_t>(code, 0) & 0x20, 0x20);
    EXPECT_EQ(content[8], std::byte{0x12});
}

TEST_F(FlashTest, WideAccessesStayInside) {
    store<uint64_t>(flash, content.size() - 8, 0x40);
    store<uint64_t>(flash, content.size() - 8, 0x0807'0605'0403'0201);
    put(0, 0xFF);
    EXPECT_EQ(load<uint64_t>(flash, content.size() - 8), 0x0807'0605'0403'0201U);
    std::array<std::byte, 4> four{};
    EXPECT_NE(flash.mmio_read(content.size() - 2, four), devices::IoStatus::Ok);
    EXPECT_NE(flash.mmio_write(content.size() - 2, four), devices::IoStatus::Ok);
}

} // namespace
} // namespace coffer::tests
