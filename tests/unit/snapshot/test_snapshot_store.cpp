#include "tests/unit/snapshot/store_fixture.hpp"

#include <map>

#include "vmm/disk/home_disks.hpp"
#include "vmm/home/home_together.hpp"

namespace coffer::vmm::tests {
namespace {

TEST_F(StoreTest, RevertBringsEverythingBack) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto taken = store.take("clean", "after installing", nullptr, m_alone);
    ASSERT_TRUE(taken) << taken.error().message();
    EXPECT_FALSE(taken->running);
    EXPECT_EQ(taken->disks, 1U);
    change(*home, later());
    ASSERT_EQ(content_now(*home), later());
    auto reverted = store.revert("clean", m_alone);
    ASSERT_TRUE(reverted) << reverted.error().message();
    EXPECT_EQ(content_now(*home), first());
    EXPECT_FALSE(store.suspended());
    auto history = home->history();
    ASSERT_TRUE(history && !history->empty());
    EXPECT_EQ(history->back().kind, HistoryKind::Reverted);
    EXPECT_NE(history->back().text.find("clean"), std::string::npos);

    home.reset();
    home = open_or_fail();
    EXPECT_EQ(content_now(*home), first());
    // It can be gone back to again.
    auto again = *SnapshotStore::open(*home);
    change(*home, later());
    ASSERT_TRUE(again.revert("clean", m_alone));
    EXPECT_EQ(content_now(*home), first());
}

TEST_F(StoreTest, SuspendedMachineIsSpentOnce) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    EXPECT_FALSE(store.open_suspended());
    ASSERT_TRUE(store.suspend(machine(m_tpm), m_alone));
    EXPECT_TRUE(store.suspended());
    EXPECT_EQ(store.suspend(machine(m_tpm), m_alone).error().code(), ErrorCode::AlreadyExists);
    EXPECT_EQ(store.take("x", "", nullptr, m_alone).error().code(), ErrorCode::Busy);
    home.reset();

    home = open_or_fail();
    auto reopened = *SnapshotStore::open(*home);
    ASSERT_TRUE(reopened.suspended());
    auto image = reopened.open_suspended();
    ASSERT_TRUE(image) << image.error().message();
    EXPECT_EQ(*(*image)->read_state(), machine(m_tpm).state);
    ASSERT_TRUE(reopened.end_suspension());
    EXPECT_FALSE(reopened.suspended());
    EXPECT_TRUE(snapshot_files().empty());
    EXPECT_EQ(*read_all(**image), m_memory); // what is open stays readable
    home.reset();
    home = open_or_fail();
    EXPECT_FALSE(SnapshotStore::open(*home)->suspended());
}

TEST_F(StoreTest, RevertToARunningMachineKeepsItsImage) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto source = machine(m_tpm);
    auto taken = store.take("live", "", &source, m_alone);
    ASSERT_TRUE(taken) << taken.error().message();
    EXPECT_TRUE(taken->running);
    EXPECT_EQ(taken->memory_size, m_memory.size());
    change(*home, later());
    for (int round = 0; round < 2; ++round) {
        ASSERT_TRUE(store.revert("live", m_alone));
        EXPECT_EQ(content_now(*home), first());
        ASSERT_TRUE(store.suspended());
        EXPECT_EQ(store.remove("live", m_alone).error().code(), ErrorCode::Busy);
        auto image = store.open_suspended();
        ASSERT_TRUE(image);
        EXPECT_EQ(*read_all(**image), m_memory);
        ASSERT_TRUE(store.end_suspension());
    }
    ASSERT_TRUE(store.remove("live", m_alone));
    EXPECT_TRUE(snapshot_files().empty());
}

TEST_F(StoreTest, TreeAndNames) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto a = *store.take("a", "", nullptr, m_alone);
    auto b = *store.take("b", "", nullptr, m_alone);
    auto c = *store.take("", "", nullptr, m_alone);
    EXPECT_EQ(b.parent, a.id);
    EXPECT_EQ(c.parent, b.id);
    EXPECT_EQ(c.tag, "snapshot-3");
    EXPECT_EQ(store.take("a", "", nullptr, m_alone).error().code(), ErrorCode::AlreadyExists);
    EXPECT_EQ(store.take("../a", "", nullptr, m_alone).error().code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(store.revert("nothing", m_alone).error().code(), ErrorCode::NotFound);
    ASSERT_TRUE(store.revert("a", m_alone));
    auto d = *store.take("d", "", nullptr, m_alone);
    EXPECT_EQ(d.parent, a.id);
    ASSERT_TRUE(store.remove("b", m_alone));
    EXPECT_EQ(store.index().find("snapshot-3")->parent, a.id);
    ASSERT_TRUE(store.remove("a", m_alone));
    EXPECT_EQ(store.index().find("snapshot-3")->parent, Uuid());
    ASSERT_TRUE(store.remove("snapshot-3", m_alone));
    ASSERT_TRUE(store.remove("d", m_alone));
    EXPECT_TRUE(snapshot_files().empty());
    EXPECT_EQ(content(disk()), m_disk);
}

TEST_F(StoreTest, DamagedSnapshotIsRefusedBeforeAnythingChanges) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto source = machine(m_tpm);
    auto record = *store.take("live", "", &source, m_alone);
    change(*home, later());
    auto folder = m_host.location("vm").folder();
    for (auto const& name : {fmt::format("snapshot-{}.machine", record.id.to_string()),
                             fmt::format("snapshot-{}.home", record.id.to_string())}) {
        auto good = content(folder / name);
        auto bad = good;
        bad[bad.size() - 20] ^= std::byte{4};
        put(folder / name, bad);
        auto reverted = store.revert("live", m_alone);
        ASSERT_FALSE(reverted) << name;
        EXPECT_EQ(reverted.error().code(), ErrorCode::Integrity) << reverted.error().message();
        put(folder / name, good);
    }
    ASSERT_TRUE(store.take("next", "", nullptr, m_alone));
    // What the second snapshot's disk is in, besides the disk's own file.
    auto const needed = store.index().find("next")->layers;
    auto const part =
        needed.empty() ? folder / disk_copy_of(*store.index().find("next"), 0) : overlay_path(folder, needed[0].layer);
    std::filesystem::rename(part, part.native() + "x");
    EXPECT_EQ(store.revert("next", m_alone).error().code(), ErrorCode::Integrity);
    std::filesystem::rename(part.native() + "x", part);
    EXPECT_EQ(content_now(*home), later());
    EXPECT_TRUE(store.revert("live", m_alone));
}

// Most of memory is written before the machine stands still; what is begun and given up leaves nothing.
TEST_F(StoreTest, MemoryIsWrittenAheadOfTheSnapshot) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto source = machine(m_tpm);
    std::vector<uint64_t> const all{0, 1, 2};
    auto leftovers = [&] {
        unsigned count = 0;
        for (auto const& entry : std::filesystem::directory_iterator(m_host.location("vm").folder()))
            if (entry.path().filename().native().starts_with(".snapshot-")) ++count;
        return count + snapshot_files().size();
    };
    {
        auto begun = store.begin("live", "", source.memory);
        ASSERT_TRUE(begun) << begun.error().message();
        ASSERT_TRUE((*begun)->image().write_ahead(all, m_alone));
        EXPECT_EQ(leftovers(), 1U);
    }
    EXPECT_EQ(leftovers(), 0U);
    {
        auto begun = store.begin("live", "", source.memory);
        ASSERT_TRUE(begun);
        auto stopped = m_alone;
        stopped.cancelled = [] { return true; };
        source.ahead = begun->get();
        source.changed = all;
        EXPECT_EQ(store.take("live", "", &source, stopped).error().code(), ErrorCode::Cancelled);
    }
    EXPECT_EQ(leftovers(), 0U);
    EXPECT_TRUE(store.index().snapshots.empty());
    EXPECT_EQ(content_now(*home), first());

    auto begun = store.begin("live", "", source.memory);
    ASSERT_TRUE(begun);
    ASSERT_TRUE((*begun)->image().write_ahead(all, m_alone));
    m_memory[70'000] = std::byte{1}; // in the second cluster
    source.ahead = begun->get();
    source.changed = {1};
    auto taken = store.take("live", "", &source, m_alone);
    ASSERT_TRUE(taken) << taken.error().message();
    begun->reset();
    ASSERT_TRUE(store.check("live"));
    EXPECT_EQ(store.begin("live", "", source.memory).error().code(), ErrorCode::AlreadyExists);
    ASSERT_TRUE(store.revert("live", m_alone));
    auto image = store.open_suspended();
    ASSERT_TRUE(image) << image.error().message();
    EXPECT_EQ(*(*image)->read_state(), source.state);
    EXPECT_EQ(*read_all(**image), m_memory);
}

// A deep rekey takes snapshots along.
TEST_F(StoreTest, ImageUnderOtherKeysHasTheSameContent) {
    auto home = open_or_fail();
    fill_with_everything(m_memory);
    std::array<Bytes, 1> parts{Bytes(m_memory)};
    write(*home, bytes_of("state"), parts, {.compress = true, .threads = 1});
    auto from = home->open_image(k_image_name);
    ASSERT_TRUE(from);
    auto to = home->begin_image(k_image_name);
    ASSERT_TRUE(to);
    uint64_t advanced = 0;
    auto root = rewrite_machine_image(*from, *to, [&](uint64_t bytes) { advanced += bytes; });
    ASSERT_TRUE(root) << root.error().message();
    EXPECT_GT(advanced, 0U);
    auto before = content(image_path());
    ASSERT_TRUE(home->commit_image(*to, *root));
    auto after = content(image_path());
    EXPECT_EQ(before.size(), after.size());
    EXPECT_FALSE(std::equal(before.begin() + 4096, before.begin() + 8192, after.begin() + 4096));
    auto image = open(*home);
    ASSERT_TRUE(image) << image.error().message();
    EXPECT_EQ(*(*image)->read_state(), bytes_of("state"));
    EXPECT_EQ(*read_all(**image), m_memory);
}

// Layers are there for as long as something needs them, and no longer.
TEST_F(StoreTest, LayersOfATreeComeAndGo) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto at = [](unsigned n) { return ByteVector(8192, static_cast<std::byte>(n)); };
    auto take = [&](std::string const& tag) {
        auto taken = store.take(tag, "", nullptr, m_alone);
        ASSERT_TRUE(taken) << taken.error().message();
    };
    auto revert = [&](std::string const& tag) {
        auto reverted = store.revert(tag, m_alone);
        ASSERT_TRUE(reverted) << reverted.error().message();
    };
    write_disk(*home, at(1));
    take("one");
    if (!store.index().find("one")->layers.size()) GTEST_SKIP() << "the file system shares blocks";
    write_disk(*home, at(2));
    take("two");
    write_disk(*home, at(3));
    revert("one");
    EXPECT_EQ(disk_now(*home), at(1));
    EXPECT_EQ(store.index().disks.layers.size(), 2U) << "what was written since 'two' is gone";
    write_disk(*home, at(4));
    take("branch");
    write_disk(*home, at(5));
    for (auto const& [tag, content] : std::map<std::string, unsigned>{{"one", 1}, {"two", 2}, {"branch", 4}}) {
        revert(tag);
        EXPECT_EQ(disk_now(*home), at(content)) << tag;
    }
    revert("branch");
    write_disk(*home, at(6));
    // 'one' is the root of two branches, so that its content stays where it is.
    ASSERT_TRUE(store.remove("one", m_alone));
    EXPECT_EQ(disk_now(*home), at(6));
    revert("two");
    EXPECT_EQ(disk_now(*home), at(2));
    revert("branch");
    EXPECT_EQ(disk_now(*home), at(4));
    ASSERT_TRUE(store.remove("two", m_alone));
    EXPECT_EQ(disk_now(*home), at(4));
    EXPECT_EQ(store.index().disks.layers.size(), 1U);
    EXPECT_EQ(content(disk()), at(4)) << "merged with the disk's own file";
    write_disk(*home, at(7));
    ASSERT_TRUE(store.remove("branch", m_alone));
    EXPECT_TRUE(store.index().disks.layers.empty());
    EXPECT_EQ(content(disk()), at(7));
    EXPECT_TRUE(snapshot_files().empty());
}

// The process that runs the VM goes on with what it has open.
TEST_F(StoreTest, DisksThatAreOpenGoOnInALayer) {
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    auto at = [](unsigned n) { return ByteVector(8192, static_cast<std::byte>(n)); };
    {
        auto disks = HomeDisks::open(*home);
        ASSERT_TRUE(disks);
        store.use(*disks);
        auto& disk = *disks->backends()[0];
        auto source = machine(m_tpm);
        ASSERT_TRUE(disk.write(0, at(1)));
        ASSERT_TRUE(store.take("one", "", &source, m_alone));
        bool const layered = !store.index().disks.layers.empty();
        ASSERT_TRUE(disk.write(0, at(2)));
        ASSERT_TRUE(store.take("two", "", &source, m_alone));
        ASSERT_TRUE(disk.write(0, at(3)));
        if (layered) {
            EXPECT_EQ(content(this->disk()), at(1));
        }
        ASSERT_TRUE(store.remove("one", m_alone));
        ByteVector now(8192);
        ASSERT_TRUE(disk.read(0, now));
        EXPECT_EQ(now, at(3));
        if (layered) {
            EXPECT_EQ(store.index().disks.layers.size(), 1U);
            EXPECT_EQ(content(this->disk()), at(2));
        }
        ASSERT_TRUE(disk.write(0, at(4)));
        ASSERT_TRUE(disks->close());
    }
    EXPECT_EQ(disk_now(*home), at(4));
    auto reopened = *SnapshotStore::open(*home);
    ASSERT_TRUE(reopened.revert("two", m_alone));
    EXPECT_EQ(disk_now(*home), at(2));
    ASSERT_TRUE(reopened.end_suspension());
    {
        auto disks = HomeDisks::open(*home);
        ASSERT_TRUE(disks);
        reopened.use(*disks);
        ASSERT_TRUE(disks->backends()[0]->write(0, at(5)));
        // The uppermost layer goes while it is written to.
        ASSERT_TRUE(reopened.remove("two", m_alone));
        ASSERT_TRUE(disks->backends()[0]->write(4096, ByteVector(4096, std::byte{6})));
        ASSERT_TRUE(disks->close());
    }
    auto expected = at(5);
    std::ranges::fill(MutBytes(expected).last(4096), std::byte{6});
    EXPECT_EQ(content(disk()), expected);
    EXPECT_TRUE(snapshot_files().empty());
}

TEST_F(StoreTest, DiskThatIsNoFileIsRefused) {
    std::filesystem::remove(disk());
    std::filesystem::create_directory(disk());
    auto home = open_or_fail();
    auto store = *SnapshotStore::open(*home);
    EXPECT_FALSE(store.take("a", "", nullptr, m_alone));
    EXPECT_TRUE(snapshot_files().empty());
}

} // namespace
} // namespace coffer::vmm::tests
