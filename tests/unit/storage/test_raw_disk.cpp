#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "devices/storage/raw_disk.hpp"

namespace coffer::tests {
namespace {

using devices::RawDisk;

struct RawDiskTest : ::testing::TestWithParam<bool> {
    std::filesystem::path folder;
    std::filesystem::path file;
    void SetUp() override {
        // Not /tmp: that may be a tmpfs, which has no direct I/O.
        std::string name = (std::filesystem::current_path() / "raw-disk-XXXXXX").string();
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder = name;
        file = folder / "disk";
        ByteVector content(1 << 20);
        for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<std::byte>(i / 512 + i);
        ASSERT_TRUE(replace_file(file, content).has_value());
    }
    void TearDown() override { std::filesystem::remove_all(folder); }
    std::unique_ptr<RawDisk> open() {
        auto disk = RawDisk::open(file, {.read_only = false, .direct = GetParam()});
        if (!disk && disk.error().code() == ErrorCode::Unsupported) return nullptr;
        EXPECT_TRUE(disk.has_value()) << disk.error().message();
        return disk ? std::move(*disk) : nullptr;
    }
};

TEST_P(RawDiskTest, ReadsAndWritesAtAnyAlignment) {
    auto disk = open();
    if (!disk) GTEST_SKIP() << "no direct I/O in this file system";
    ByteVector expected = *read_file(file, 1 << 20);
    ByteVector buffer(64 * 1024 + 1);
    for (uint64_t offset : {0U, 512U, 4096U, 4608U, 1048576U - 8192U}) {
        for (size_t size : {512U, 1024U, 4096U, 8192U}) {
            if (offset + size > expected.size()) continue;
            for (size_t skew : {0U, 1U}) {
                MutBytes piece = MutBytes(buffer).subspan(skew, size);
                std::ranges::fill(piece, static_cast<std::byte>(offset + size + skew));
                ASSERT_TRUE(disk->write(offset, piece).has_value());
                std::ranges::copy(piece, expected.begin() + static_cast<std::ptrdiff_t>(offset));
                std::ranges::fill(piece, std::byte{0});
                ASSERT_TRUE(disk->read(offset, piece).has_value());
                ASSERT_TRUE(
                    std::equal(piece.begin(), piece.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset)));
            }
        }
    }
    ASSERT_TRUE(disk->flush().has_value());
    ASSERT_TRUE(disk->write_zeroes(512, 5120).has_value());
    std::fill_n(expected.begin() + 512, 5120, std::byte{0});
    ASSERT_TRUE(disk->discard(0, 4096).has_value());
    ByteVector all(expected.size());
    ASSERT_TRUE(disk->read(0, all).has_value());
    EXPECT_TRUE(std::equal(all.begin() + 4096, all.end(), expected.begin() + 4096));
    disk.reset();
    EXPECT_EQ(std::filesystem::file_size(file), 1U << 20);
}

INSTANTIATE_TEST_SUITE_P(Cached, RawDiskTest, ::testing::Values(false));
INSTANTIATE_TEST_SUITE_P(Direct, RawDiskTest, ::testing::Values(true));

TEST_P(RawDiskTest, IsLockedAgainstASecondWriter) {
    auto disk = open();
    if (!disk) GTEST_SKIP() << "no direct I/O in this file system";
    auto second = RawDisk::open(file, {.read_only = false, .direct = false});
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code(), ErrorCode::Busy);
    auto reader = RawDisk::open(file, {.read_only = true, .direct = false});
    ASSERT_FALSE(reader.has_value());
    disk.reset();
    auto first_reader = RawDisk::open(file, {.read_only = true, .direct = false});
    auto second_reader = RawDisk::open(file, {.read_only = true, .direct = false});
    EXPECT_TRUE(first_reader.has_value() && second_reader.has_value());
    EXPECT_FALSE(RawDisk::open(file, {.read_only = false, .direct = false}).has_value());
}

// A migration: the machine that has the disk open stands still, and another one opens it, or does not.
TEST_P(RawDiskTest, LetsAnotherWriterInAndTakesTheLockBack) {
    auto disk = open();
    if (!disk) GTEST_SKIP() << "no direct I/O in this file system";
    disk->unlock();
    auto second = RawDisk::open(file, {.read_only = false, .direct = false});
    ASSERT_TRUE(second.has_value()) << second.error().message();
    EXPECT_EQ(disk->lock().error().code(), ErrorCode::Busy);
    second = make_error(ErrorCode::Cancelled, "closed");
    EXPECT_TRUE(disk->lock().has_value());
    EXPECT_FALSE(RawDisk::open(file, {.read_only = false, .direct = false}).has_value());
}

TEST_P(RawDiskTest, RefusesWhatIsNoDisk) {
    std::filesystem::resize_file(file, 1000);
    auto odd = RawDisk::open(file, {.read_only = false, .direct = false});
    ASSERT_FALSE(odd.has_value());
    EXPECT_EQ(odd.error().code(), ErrorCode::Corrupt);
    EXPECT_NE(odd.error().message().find("1000"), std::string::npos);
    EXPECT_FALSE(RawDisk::open(folder, {.read_only = true, .direct = false}).has_value());
    EXPECT_FALSE(RawDisk::open(folder / "absent", {.read_only = false, .direct = GetParam()}).has_value());
    EXPECT_FALSE(RawDisk::open("/dev/null", {.read_only = false, .direct = false}).has_value());
}

} // namespace
} // namespace coffer::tests
