// Files that tell what was written to them, and copies that are made of them meanwhile.
#include <atomic>
#include <functional>
#include <thread>

#include "tests/unit/disk/disk_fixture.hpp"
#include "vmm/disk/layered_file.hpp"
#include "vmm/disk/tracked_file.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_block = DirtyBlocks::k_block_size;
constexpr uint64_t k_size = 200 * k_block + 1024; // more than one word of blocks, and a last one that is not whole

// A disk in memory; one thread writes and another may read meanwhile.
class MemoryDisk final : public devices::BlockBackend {
public:
    explicit MemoryDisk(uint64_t size) : m_bytes(size) {}
    uint64_t size() const noexcept override { return m_bytes.size(); }
    bool read_only() const noexcept override { return false; }
    Result<void> read(uint64_t offset, MutBytes to) override {
        std::lock_guard lock(m_mutex);
        std::ranges::copy(Bytes(m_bytes).subspan(offset, to.size()), to.begin());
        return {};
    }
    Result<void> write(uint64_t offset, Bytes from) override {
        if (during_write) during_write();
        if (broken) return make_error(ErrorCode::Io, "the disk is broken");
        std::lock_guard lock(m_mutex);
        std::ranges::copy(from, m_bytes.begin() + static_cast<std::ptrdiff_t>(offset));
        return {};
    }
    Result<void> flush() override { return {}; }
    Result<void> discard(uint64_t offset, uint64_t size) override { return write_zeroes(offset, size); }

    std::function<void()> during_write; // before anything is written
    bool broken = false;

private:
    std::mutex m_mutex;
    ByteVector m_bytes;
};

struct Tracked {
    explicit Tracked(uint64_t size = k_size) {
        auto made = std::make_unique<MemoryDisk>(size);
        disk = made.get();
        file = std::make_unique<TrackedFile>(std::move(made), "disk");
    }
    MemoryDisk* disk = nullptr;
    std::unique_ptr<TrackedFile> file;
};

using Ranges = std::vector<FileRange>;

TEST(TrackedFile, NotesWhatIsWrittenFromTheStartToTheEnd) {
    Tracked tracked;
    auto& file = *tracked.file;
    auto& dirty = file.dirty();
    ByteVector const sector(512, std::byte{7});
    ASSERT_TRUE(file.write(0, sector));
    ASSERT_TRUE(dirty.start());
    EXPECT_EQ(dirty.bytes(), 0U);
    EXPECT_EQ(dirty.take(), Ranges());

    ASSERT_TRUE(file.write(3 * k_block + 512, sector));
    ASSERT_TRUE(file.write(5 * k_block - 512, ByteVector(1024)));
    ASSERT_TRUE(file.write_zeroes(64 * k_block, k_block));
    ASSERT_TRUE(file.discard(130 * k_block + 512, 512));
    ASSERT_TRUE(file.write(k_size - 512, sector));
    ASSERT_TRUE(file.write(9 * k_block, Bytes())); // nothing
    EXPECT_EQ(dirty.bytes(), 6 * k_block);
    Ranges const expected = {
        {3 * k_block, 3 * k_block}, {64 * k_block, k_block}, {130 * k_block, k_block}, {200 * k_block, 1024}};
    EXPECT_EQ(dirty.take(), expected);
    EXPECT_EQ(dirty.take(), Ranges());

    ASSERT_TRUE(file.write(0, sector));
    dirty.stop();
    EXPECT_EQ(dirty.take(), Ranges());
    ASSERT_TRUE(file.write(0, sector));
    EXPECT_EQ(dirty.bytes(), 0U);
    ASSERT_TRUE(dirty.start());
    EXPECT_EQ(dirty.take(), Ranges());
}

TEST(TrackedFile, IsCopiedByOneAtATime) {
    Tracked tracked;
    ASSERT_TRUE(tracked.file->dirty().start());
    auto const again = tracked.file->dirty().start();
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), ErrorCode::Busy);
    tracked.file->dirty().stop();
    EXPECT_TRUE(tracked.file->dirty().start());
}

TEST(TrackedFile, AFailedWriteMayHaveLeftAPart) {
    Tracked tracked;
    ASSERT_TRUE(tracked.file->dirty().start());
    tracked.disk->broken = true;
    EXPECT_FALSE(tracked.file->write(k_block, ByteVector(512)));
    EXPECT_EQ(tracked.file->dirty().take(), (Ranges{{k_block, k_block}}));
}

// Whoever takes the notes in the middle of a write reads what was there before it, so that it has to come again.
TEST(TrackedFile, AWriteThatIsUnderWayIsNotedAfterIt) {
    Tracked tracked;
    ASSERT_TRUE(tracked.file->dirty().start());
    Ranges meanwhile;
    tracked.disk->during_write = [&] { meanwhile = tracked.file->dirty().take(); };
    ASSERT_TRUE(tracked.file->write(k_block, ByteVector(512)));
    EXPECT_EQ(meanwhile, Ranges());
    EXPECT_EQ(tracked.file->dirty().take(), (Ranges{{k_block, k_block}}));
}

void copy_ranges(TrackedFile& from, Ranges const& ranges, ByteVector& to) {
    for (auto const& range : ranges)
        ASSERT_TRUE(from.read(range.offset, MutBytes(to).subspan(range.offset, range.size)));
}

ByteVector all_of(devices::BlockBackend& disk) {
    ByteVector all(disk.size());
    EXPECT_TRUE(disk.read(0, all));
    return all;
}

TEST(TrackedFile, ACopyThatIsMadeWhileAThreadWritesIsRightInTheEnd) {
    constexpr uint64_t k_small = 8 * k_block;
    Tracked tracked(k_small);
    auto& file = *tracked.file;
    std::atomic<bool> over{false};
    std::thread writer([&] {
        std::mt19937_64 random(5);
        while (!over) {
            uint64_t const at = random() % (k_small / 512) * 512;
            uint64_t const size = std::min<uint64_t>(512 * (1 + random() % 200), k_small - at);
            EXPECT_TRUE(file.write(at, pattern(size, random())));
        }
    });
    for (int attempt = 0; attempt < 20; ++attempt) {
        ASSERT_TRUE(file.dirty().start());
        ByteVector copy = all_of(file);
        for (int round = 0; round < 50; ++round) copy_ranges(file, file.dirty().take(), copy);
        if (attempt == 19) {
            over = true;
            writer.join();
            copy_ranges(file, file.dirty().take(), copy);
            EXPECT_EQ(copy, all_of(file));
        }
        file.dirty().stop();
    }
}

// Each layer is a file of its own, and what is written to the disk goes to some of them.
TEST(TrackedFile, TheFilesOfALayeredDiskAreCopiedOneByOne) {
    coffer::tests::TempFolder folder;
    constexpr uint64_t k_content = 40 * overlay_spec::k_cluster_size;
    Uuid const lower({std::byte{1}});
    Uuid const upper({std::byte{2}});
    auto open = [&](bool make) {
        auto own = std::make_unique<TrackedFile>(std::make_unique<MemoryDisk>(k_content), "disk");
        auto disk = std::make_unique<LayeredFile>(std::move(own), "disk");
        for (auto const& [id, name] : {std::pair(lower, "lower"), std::pair(upper, "upper")}) {
            auto overlay =
                make ? OverlayFile::create(folder.path() / name, {id, k_content})
                     : OverlayFile::open(folder.path() / (std::string(name) + ".copy"), {id, k_content}, false);
            EXPECT_TRUE(overlay) << overlay.error().message();
            disk->push(std::move(*overlay));
        }
        return disk;
    };
    auto disk = open(true);
    auto const files = disk->files();
    ASSERT_EQ(files.size(), 3U);
    EXPECT_EQ(files[1]->path(), folder.path() / "lower");
    EXPECT_EQ(files[2]->path(), folder.path() / "upper");
    ASSERT_TRUE(disk->write(0, pattern(k_content / 2, 1)));
    std::vector<ByteVector> copies;
    for (auto* file : files) {
        ASSERT_TRUE(file->dirty().start());
        copies.push_back(all_of(*file));
    }
    ASSERT_TRUE(disk->write(k_content / 4 + 512, pattern(k_content / 2, 2)));
    ASSERT_TRUE(disk->flush()); // which clusters it has is written by this
    EXPECT_EQ(files[0]->dirty().bytes(), 0U);
    EXPECT_EQ(files[1]->dirty().bytes(), 0U);
    for (size_t i = 0; i < files.size(); ++i) copy_ranges(*files[i], files[i]->dirty().take(), copies[i]);
    ASSERT_TRUE(replace_file(folder.path() / "lower.copy", copies[1]));
    ASSERT_TRUE(replace_file(folder.path() / "upper.copy", copies[2]));
    EXPECT_EQ(all_of(*open(false)), all_of(*disk));
}

} // namespace
} // namespace coffer::vmm::tests
