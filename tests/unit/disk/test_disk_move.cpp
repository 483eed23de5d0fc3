// Disks go with their home to another root while they are written: what was written before, meanwhile and after is
// there.
#include <atomic>
#include <thread>

#include "tests/unit/disk/disk_fixture.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "vmm/disk/disk_move.hpp"
#include "vmm/home/open_home_move.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::vmm::tests {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t k_size = uint64_t{12} << 20;
constexpr size_t k_disks = 4;

Result<void> no_progress(uint64_t, uint64_t) {
    return {};
}

class MovedDisks : public testing::Test {
protected:
    // An authenticated disk, one that is only encrypted, one outside of the home, and one that the guest cannot write;
    // with a snapshot, so that what is written goes to overlays.
    void SetUp() override {
        log::set_level(log::Level::Error);
        DiskSecrets secrets;
        std::vector<DiskSecret> own;
        m_config.disks.clear();
        for (size_t i = 0; i < k_disks; ++i) {
            if (i == 2) {
                m_outside = m_folder.path() / "outside.img";
                ASSERT_TRUE(replace_file(m_outside, ByteVector(k_size)));
                m_config.disks.push_back({.path = m_outside.native()});
                continue;
            }
            own.push_back(*DiskSecret::random());
            secrets.add(copy_of(own.back()));
            auto const protection = i == 0 ? DiskProtection::Authenticated : DiskProtection::Unauthenticated;
            m_config.disks.push_back({.path = fmt::format("disk-{}", i),
                                      .read_only = i == 3,
                                      .protection = protection,
                                      .uuid = own.back().disk});
        }
        auto encoded = secrets.encode();
        NewDisks disks{encoded.expose(), [&](fs::path const& home) -> Result<void> {
                           for (auto const& disk : m_config.disks)
                               for (auto const& secret : own)
                                   if (secret.disk == disk.uuid)
                                       TRY(create_disk(home / disk.path, secret,
                                                       {m_config.uuid, disk.protection, k_size, 1 << 20}));
                           return {};
                       }};
        auto made =
            create_home(m_host.location("vm"), m_config, bytes_of("variables"), m_host.seal(), bytes_of("TPM"), disks);
        ASSERT_TRUE(made) << made.error().message();
    }

    Result<std::unique_ptr<HomeSession>> open(HomeLocation const& location) const {
        return open_home(location, HomeAccess::Writer,
                         [&](BundleHeader const&) -> Result<crypto::BundleKey> { return copy_of(m_host.key()); });
    }
    static ByteVector content(HomeDisks const& disks, size_t number) {
        ByteVector bytes(k_size);
        auto read = disks.backends()[number]->read(0, bytes);
        EXPECT_TRUE(read) << read.error().message();
        return bytes;
    }

    // Writes, zeroes and discards, and what is there then.
    void write_some(HomeDisks const& disks, unsigned count) {
        for (unsigned i = 0; i < count; ++i) {
            size_t const number = m_random() % 3;
            auto& disk = *disks.backends()[number];
            uint64_t const sectors = 1 + m_random() % 200;
            uint64_t const offset = m_random() % (k_size / 512 - sectors) * 512;
            auto const bytes = m_random() % 8 == 0 ? ByteVector(sectors * 512) : pattern(sectors * 512, m_random());
            auto const written = all_zero(bytes) ? disk.write_zeroes(offset, bytes.size()) : disk.write(offset, bytes);
            ASSERT_TRUE(written) << written.error().message();
            std::ranges::copy(bytes, m_content[number].begin() + static_cast<std::ptrdiff_t>(offset));
            ASSERT_TRUE(m_random() % 16 != 0 || disk.flush());
        }
    }
    // Two moves under way are told apart by what the second one finds.
    Result<void> move(HomeSession& home, HomeDisks& disks, HomeRoot const& to, bool with_rest = true) {
        auto going = TRY(OpenHomeMove::begin(home, to));
        DiskMove moving(disks);
        EXPECT_EQ(moving.names().size(), m_files_in_home);
        std::atomic<bool> enough{false};
        std::thread guest([&] {
            do write_some(disks, 20);
            while (!enough);
        });
        auto const copied = [&]() -> Result<void> {
            TRY(moving.copy(going.folder(), no_progress));
            TRY(going.copy(moving.names(), no_progress));
            TRY(moving.copy_rounds(no_progress));
            return {};
        }();
        enough = true;
        guest.join();
        TRY(Result<void>(copied));
        write_some(disks, 40);
        auto const rest = [&]() -> Result<void> {
            if (with_rest) m_rest += TRY(moving.copy_rest(no_progress));
            return {};
        };
        TRY(going.finish(moving.names(), rest, no_progress));
        moving.go_over(going.target().folder());
        return going.remove_old();
    }
    // As a machine that stands still does it before it is saved.
    static void flush(HomeDisks const& disks) {
        for (size_t i = 0; i < 3; ++i) ASSERT_TRUE(disks.backends()[i]->flush());
    }
    void expect_content(HomeDisks const& disks) {
        for (size_t i = 0; i < k_disks; ++i) EXPECT_TRUE(content(disks, i) == m_content[i]) << "disk " << i;
    }

    coffer::tests::TempFolder m_folder;
    Host m_host{m_folder.path()};
    HomeRoot m_there{m_folder.path() / "there", m_folder.path() / "there-state"};
    VmConfig m_config = make_config("vm");
    fs::path m_outside;
    std::mt19937_64 m_random{20};
    std::vector<ByteVector> m_content{k_disks, ByteVector(k_size)};
    size_t m_files_in_home = 3;
    uint64_t m_rest = 0;
};

TEST_F(MovedDisks, HaveAllThatWasWritten) {
    auto home = *open(m_host.location("vm"));
    std::vector<ByteVector> before;
    {
        auto disks = *HomeDisks::open(*home);
        write_some(disks, 50);
        ASSERT_NO_FATAL_FAILURE();
        auto moved = move(*home, disks, m_there);
        ASSERT_TRUE(moved) << moved.error().message();
        EXPECT_EQ(home->location().root.root, m_there.root);
        EXPECT_FALSE(fs::exists(m_host.location("vm").folder()));
        write_some(disks, 50);
        expect_content(disks);

        // With overlays, and back.
        auto store = *SnapshotStore::open(*home);
        store.use(disks);
        flush(disks);
        auto taken = store.take("one", "", nullptr, {});
        ASSERT_TRUE(taken) << taken.error().message();
        before = m_content;
        m_files_in_home += 3;
        write_some(disks, 50);
        auto back = move(*home, disks, m_host.root());
        ASSERT_TRUE(back) << back.error().message();
        EXPECT_FALSE(fs::exists(m_there.vms() / "vm"));
        // The store follows.
        flush(disks);
        auto again = store.take("two", "", nullptr, {});
        ASSERT_TRUE(again) << again.error().message();
        m_files_in_home += 3;
        write_some(disks, 50);
        ASSERT_TRUE(store.remove("two", {}));
        expect_content(disks);
        ASSERT_TRUE(disks.close());
    }
    EXPECT_GT(m_rest, 0U);
    home.reset();
    home = *open(m_host.location("vm"));
    {
        auto disks = HomeDisks::open(*home);
        ASSERT_TRUE(disks) << disks.error().message();
        expect_content(*disks);
        ASSERT_TRUE(disks->close());
    }
    auto store = *SnapshotStore::open(*home);
    auto reverted = store.revert("one", {});
    ASSERT_TRUE(reverted) << reverted.error().message();
    m_content = before;
    auto disks = HomeDisks::open(*home);
    ASSERT_TRUE(disks) << disks.error().message();
    expect_content(*disks);
}

// What is written after the first copy goes in rounds, until little is left.
TEST_F(MovedDisks, GoInRounds) {
    auto home = *open(m_host.location("vm"));
    auto disks = *HomeDisks::open(*home);
    auto going = OpenHomeMove::begin(*home, m_there);
    ASSERT_TRUE(going);
    DiskMove moving(disks);
    ASSERT_TRUE(moving.copy(going->folder(), no_progress));
    auto& disk = *disks.backends()[1];
    m_content[1] = pattern(k_size, 5);
    ASSERT_TRUE(disk.write(0, m_content[1]));
    uint64_t told = 0;
    auto const rounds = moving.copy_rounds([&](uint64_t done, uint64_t total) -> Result<void> {
        EXPECT_LE(done, total);
        // While the first of it is copied.
        EXPECT_TRUE(told != 0 || disk.write(0, pattern(512, 6)));
        told = done;
        return {};
    });
    ASSERT_TRUE(rounds) << rounds.error().message();
    EXPECT_EQ(rounds->count, 1U);
    EXPECT_GE(rounds->bytes, k_size);
    std::ranges::copy(pattern(512, 6), m_content[1].begin());
    uint64_t rest = 0;
    auto const copy_rest = [&]() -> Result<void> {
        rest = TRY(moving.copy_rest(no_progress));
        return {};
    };
    auto finished = going->finish(moving.names(), copy_rest, no_progress);
    ASSERT_TRUE(finished) << finished.error().message();
    EXPECT_EQ(rest, DirtyBlocks::k_block_size);
    moving.go_over(going->target().folder());
    ASSERT_TRUE(going->remove_old());
    EXPECT_TRUE(content(disks, 1) == m_content[1]);
}

// The check finds what is not copied.
TEST_F(MovedDisks, WithoutTheRestAreOthers) {
    auto home = *open(m_host.location("vm"));
    {
        auto disks = *HomeDisks::open(*home);
        auto moved = move(*home, disks, m_there, false);
        ASSERT_TRUE(moved) << moved.error().message();
    }
    home.reset();
    home = *open({m_there, "vm"});
    auto disks = HomeDisks::open(*home);
    bool same = disks.has_value();
    for (size_t i = 0; same && i < k_disks; ++i) {
        ByteVector bytes(k_size);
        same = disks->backends()[i]->read(0, bytes) && bytes == m_content[i];
    }
    EXPECT_FALSE(same);
}

// Whoever gives up leaves the disks as they were.
TEST_F(MovedDisks, GoOnWhereTheyWere) {
    auto home = *open(m_host.location("vm"));
    auto disks = *HomeDisks::open(*home);
    write_some(disks, 20);
    {
        auto going = OpenHomeMove::begin(*home, m_there);
        ASSERT_TRUE(going);
        DiskMove moving(disks);
        int calls = 0;
        auto copied = moving.copy(going->folder(), [&](uint64_t, uint64_t) -> Result<void> {
            if (++calls == 5) return make_error(ErrorCode::Cancelled, "given up");
            return {};
        });
        ASSERT_FALSE(copied);
        EXPECT_EQ(copied.error().code(), ErrorCode::Cancelled);
    }
    EXPECT_TRUE(fs::is_empty(m_there.vms()));
    write_some(disks, 20);
    expect_content(disks);
    auto moved = move(*home, disks, m_there);
    ASSERT_TRUE(moved) << moved.error().message();
    expect_content(disks);
    ASSERT_TRUE(disks.close());
}

} // namespace
} // namespace coffer::vmm::tests
