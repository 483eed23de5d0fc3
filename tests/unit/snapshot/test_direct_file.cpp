// Direct writes, and file systems that refuse them: at once, or only when it comes to writing.
#include "vmm/snapshot/direct_file.hpp"

#include <cstring>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>

#include "tests/support/syscall_tracer.hpp"
#include "tests/support/temp_folder.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_start = 4096;
constexpr uint32_t k_pieces = 150; // more than are reserved at once
constexpr size_t k_rest = 1000;

size_t size_of(uint32_t number) {
    return WriteBuffer::k_capacity - number * 100;
}
std::byte filling(uint32_t number) {
    return static_cast<std::byte>(number * 7 + 1);
}
bool all_are(Bytes bytes, std::byte value) {
    // Each equals the one before: no loop of ours is as fast.
    return bytes.empty() || (bytes[0] == value && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

// Pieces that say their number, of different sizes, and an end that is no whole block.
Result<void> write_pieces(std::filesystem::path const& path, unsigned threads) {
    auto file = TRY(DirectFile::create(path, k_start));
    std::atomic<uint32_t> next{0};
    std::atomic<bool> failed{false};
    auto work = [&] {
        WriteBuffer buffer;
        for (uint32_t number = 0; (number = next++) < k_pieces; buffer.clear()) {
            auto piece = buffer.add(size_of(number));
            std::memset(piece.data(), std::to_integer<int>(filling(number)), piece.size());
            store_le<uint32_t>(piece, 0, number);
            auto bytes = buffer.padded();
            if (!file->write(bytes, file->place(bytes.size()))) failed = true;
        }
    };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (auto& other : others) other.join();
    if (failed) return make_error(ErrorCode::Io, "a write failed");
    TRY(file->finish(ByteVector(k_rest, std::byte{0xEE})));
    return {};
}

void expect_pieces(std::filesystem::path const& path) {
    auto read = read_file(path, size_t{1} << 30);
    ASSERT_TRUE(read) << read.error().message();
    Bytes content = *read;
    size_t at = k_start;
    std::vector<bool> seen(k_pieces);
    for (uint32_t i = 0; i < k_pieces; ++i) {
        ASSERT_LT(at + 4, content.size());
        auto number = load_le<uint32_t>(content, at);
        ASSERT_LT(number, k_pieces) << "at " << at;
        ASSERT_FALSE(seen[number]) << number;
        seen[number] = true;
        size_t const end = align_up(at + size_of(number), DirectFile::k_alignment);
        ASSERT_LE(end, content.size());
        EXPECT_TRUE(all_are(content.subspan(at + 4, size_of(number) - 4), filling(number))) << number;
        EXPECT_TRUE(all_are(content.subspan(at + size_of(number), end - at - size_of(number)), std::byte{0}));
        at = end;
    }
    ASSERT_EQ(content.size(), at + k_rest);
    EXPECT_TRUE(all_are(content.subspan(at), std::byte{0xEE}));
}

TEST(DirectFile, HoldsWhatSeveralThreadsWrote) {
    coffer::tests::TempFolder folder;
    auto const path = folder.path() / "file";
    auto written = write_pieces(path, 4);
    ASSERT_TRUE(written) << written.error().message();
    expect_pieces(path);
    // What was there before is gone.
    ASSERT_TRUE(write_pieces(path, 1));
    expect_pieces(path);
}

// As old file systems refuse direct writes, and as disks with larger blocks do.
TEST(DirectFile, GoesThroughThePageCacheWhereDirectWritesAreRefused) {
    using coffer::tests::run_watched;
    auto sets_direct = [](user_regs_struct const& call) {
        return call.orig_rax == SYS_fcntl && call.rsi == F_SETFL && (call.rdx & O_DIRECT) != 0;
    };
    for (bool at_once : {true, false}) {
        SCOPED_TRACE(at_once);
        coffer::tests::TempFolder folder;
        auto const path = folder.path() / "file";
        bool direct = false;
        unsigned refused = 0;
        auto run = run_watched([&] { return write_pieces(path, 1) ? 0 : 1; },
                               {.entering = [&](pid_t, user_regs_struct const& call) -> std::optional<long> {
                                   if (call.orig_rax == SYS_fcntl && call.rsi == F_SETFL) {
                                       direct = sets_direct(call);
                                       if (!direct || !at_once) return std::nullopt;
                                       direct = false;
                                       ++refused;
                                       return -EINVAL;
                                   }
                                   if (call.orig_rax != SYS_pwrite64 || !direct) return std::nullopt;
                                   ++refused;
                                   return -EINVAL;
                               }});
        EXPECT_EQ(run.exit_code, 0);
        EXPECT_EQ(refused, 1U);
        expect_pieces(path);
    }
}

// Space is reserved ahead, and a disk that has no more of it is told apart from one that cannot reserve.
TEST(DirectFile, NeedsNoReservationAndSaysWhenTheDiskIsFull) {
    using coffer::tests::run_watched;
    for (bool full : {false, true}) {
        SCOPED_TRACE(full);
        coffer::tests::TempFolder folder;
        auto const path = folder.path() / "file";
        auto run = run_watched(
            [&] {
                auto written = write_pieces(path, 1);
                return written ? 0 : 1;
            },
            {.entering = [&](pid_t, user_regs_struct const& call) -> std::optional<long> {
                if (call.orig_rax == SYS_fallocate) return full ? -ENOSPC : -EOPNOTSUPP;
                if (call.orig_rax == SYS_pwrite64 && full) return -ENOSPC;
                return std::nullopt;
            }});
        EXPECT_EQ(run.exit_code, full ? 1 : 0);
        if (!full) expect_pieces(path);
    }
}

} // namespace
} // namespace coffer::vmm::tests
