#include "tests/unit/snapshot/store_fixture.hpp"

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
        EXPECT_EQ(store.remove("live").error().code(), ErrorCode::Busy);
        auto image = store.open_suspended();
        ASSERT_TRUE(image);
        EXPECT_EQ(*read_all(**image), m_memory);
        ASSERT_TRUE(store.end_suspension());
    }
    ASSERT_TRUE(store.remove("live"));
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
    ASSERT_TRUE(store.remove("b"));
    EXPECT_EQ(store.index().find("snapshot-3")->parent, a.id);
    ASSERT_TRUE(store.remove("a"));
    EXPECT_EQ(store.index().find("snapshot-3")->parent, Uuid());
    EXPECT_EQ(snapshot_files().size(), 4U); // of two: a file of the home and a disk each
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
    auto copy = folder / fmt::format("saved-{}-disk-0", record.id.to_string());
    std::filesystem::rename(copy, copy.native() + "x");
    EXPECT_FALSE(store.revert("live", m_alone));
    EXPECT_EQ(content_now(*home), later());
    std::filesystem::rename(copy.native() + "x", copy);
    EXPECT_TRUE(store.revert("live", m_alone));
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
