// The power goes, the process is killed, or the disk fails, at every operation. Afterwards the image opens, what was
// flushed reads as it was written, and the rest is old or new and never anything else.
#include <sys/mman.h>

#include "devices/storage/raw_disk.hpp"
#include "tests/support/syscall_tracer.hpp"
#include "tests/unit/disk/disk_fixture.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "vmm/disk/home_disks.hpp"

namespace coffer::vmm::tests {
namespace {

using coffer::tests::Fault;
using coffer::tests::run_traced;

constexpr uint64_t k_sectors = 300 * k_unit / 512 - 3; // of the tests' disk: several tag blocks
constexpr uint64_t k_journal = 128 << 10;

// What each sector may hold: the number of the writing that was last flushed, and those begun since.
class Model {
public:
    Model() : m_flushed(k_sectors) {}
    void begin(uint64_t sector, uint32_t writing) { m_since.emplace(sector, writing); }
    void flushed(std::vector<uint32_t> const& content) {
        m_flushed = content;
        m_since.clear();
    }
    bool allows(uint64_t sector, uint32_t writing) const {
        auto [first, last] = m_since.equal_range(sector);
        return m_flushed[sector] == writing ||
               std::any_of(first, last, [&](auto const& since) { return since.second == writing; });
    }

private:
    std::vector<uint32_t> m_flushed;
    std::multimap<uint64_t, uint32_t> m_since;
};

// A sector that says which writing it is, all over; 0 is a sector of zeros.
void fill_sector(MutBytes sector, uint64_t number, uint32_t writing) {
    for (size_t at = 0; at < sector.size(); at += 16) {
        store_le<uint64_t>(sector, at, writing == 0 ? 0 : number);
        store_le<uint64_t>(sector, at + 8, writing);
    }
}

std::optional<uint32_t> writing_of(Bytes sector, uint64_t number) {
    auto const writing = static_cast<uint32_t>(load_le<uint64_t>(sector, 8));
    std::array<std::byte, 512> expected;
    fill_sector(expected, number, writing);
    if (std::memcmp(sector.data(), expected.data(), expected.size()) != 0) return std::nullopt;
    return writing;
}

// A guest's work: writes, zeroings and flushes, the same for the same seed. Gives up where the disk does, if told to.
struct Workload {
    Model model;
    std::vector<uint32_t> content = std::vector<uint32_t>(k_sectors);
    unsigned failures = 0;
    unsigned failures_in_a_row = 0;
    std::atomic<uint32_t>* acknowledged = nullptr; // flushes; may be shared with another process
    uint32_t most_flushes = UINT32_MAX;            // the work ends before the one after

    void run(EncryptedDisk& disk, int steps, bool go_on = false, uint32_t seed = 1) {
        std::mt19937 random(seed);
        uint32_t writing = 0;
        uint32_t flushes = 0;
        for (int step = 0; step < steps; ++step) {
            uint64_t const first = random() % k_sectors;
            uint64_t const count = 1 + random() % std::min<uint64_t>(k_sectors - first, random() % 4 == 0 ? 100 : 12);
            auto const kind = random() % 10;
            bool done = true;
            if (kind < 2) {
                if (flushes == most_flushes) return;
                done = disk.flush().has_value();
                if (done) {
                    model.flushed(content);
                    ++flushes;
                    if (acknowledged) *acknowledged = flushes;
                }
            } else {
                ++writing;
                uint32_t const value = kind == 2 ? 0 : writing;
                ByteVector bytes(count * 512);
                for (uint64_t i = 0; i < count; ++i) {
                    model.begin(first + i, value);
                    fill_sector(MutBytes(bytes).subspan(i * 512, 512), first + i, value);
                }
                done = (kind == 2 ? disk.write_zeroes(first * 512, count * 512) : disk.write(first * 512, bytes))
                           .has_value();
                if (done)
                    for (uint64_t i = 0; i < count; ++i) content[first + i] = value;
                else
                    resync(disk, first, count);
            }
            failures += done ? 0 : 1;
            failures_in_a_row = done ? 0 : failures_in_a_row + 1;
            if (!done && !go_on) return;
        }
    }

    // After a failed write, some of its units have the new content.
    void resync(EncryptedDisk& disk, uint64_t first, uint64_t count) {
        ByteVector bytes(count * 512);
        if (!disk.read(first * 512, bytes)) return;
        for (uint64_t i = 0; i < count; ++i)
            if (auto writing = writing_of(Bytes(bytes).subspan(i * 512, 512), first + i)) content[first + i] = *writing;
    }
};

// Sectors that hold what they must not; all of them where the disk does not open or read.
uint64_t violations(DiskImage& image, Model const& model) {
    auto disk = image.open();
    if (!disk) return k_sectors;
    ByteVector all((*disk)->size());
    if (!(*disk)->read(0, all)) return k_sectors;
    uint64_t wrong = 0;
    for (uint64_t sector = 0; sector < k_sectors; ++sector) {
        auto writing = writing_of(Bytes(all).subspan(sector * 512, 512), sector);
        if (!writing || !model.allows(sector, *writing)) ++wrong;
    }
    return wrong;
}

class DiskCrash : public testing::TestWithParam<DiskProtection> {
protected:
    DiskImage m_image{GetParam(), k_sectors * 512, k_journal};
    std::mt19937 m_random{3};

    // Runs the work until the power goes at that operation; whether it went.
    bool run_until(uint64_t power_off_at, Workload& work, bool lying = false) {
        m_image.rewind();
        m_image.state.power_off_at = power_off_at;
        if (auto disk = m_image.open(false, lying)) {
            work.run(**disk, 60);
            if (work.failures == 0) (void)(*disk)->close();
        }
        return m_image.state.operations > power_off_at;
    }
};
INSTANTIATE_TEST_SUITE_P(Kinds, DiskCrash,
                         testing::Values(DiskProtection::Unauthenticated, DiskProtection::Authenticated),
                         [](auto const& kind) { return std::string(to_string(kind.param)); });

TEST_P(DiskCrash, PowerFailsAnywhere) {
    unsigned states = 0;
    for (uint64_t at = 0;; ++at) {
        Workload work;
        bool const failed = run_until(at, work);
        auto const state = m_image.state;
        for (int attempt = 0; attempt < 2; ++attempt) {
            m_image.set(state.after_power_failure(m_random));
            ASSERT_EQ(violations(m_image, work.model), 0U) << "power off at " << at;
            ++states;
        }
        if (!failed) break;
    }
    EXPECT_GT(states, GetParam() == DiskProtection::Authenticated ? 250U : 50U);
    RecordProperty("states", static_cast<int>(states));
}

// And again while the image is recovered.
TEST_P(DiskCrash, PowerFailsInRecoveryToo) {
    if (GetParam() == DiskProtection::Unauthenticated) GTEST_SKIP() << "has no recovery";
    unsigned states = 0;
    for (uint64_t at = 0;; at += 11) {
        Workload work;
        bool const failed = run_until(at, work);
        auto const first = m_image.state.after_power_failure(m_random);
        for (uint64_t again = 0;; ++again) {
            m_image.set(first);
            m_image.state.power_off_at = again;
            (void)m_image.open();
            if (m_image.state.operations <= again) break;
            m_image.set(m_image.state.after_power_failure(m_random));
            ASSERT_EQ(violations(m_image, work.model), 0U) << "power off at " << at << " and " << again;
            ++states;
        }
        if (!failed) break;
    }
    EXPECT_GT(states, 50U);
    RecordProperty("states", static_cast<int>(states));
}

// Negative control: on a host whose flush does nothing, the tests above find what is lost.
TEST_P(DiskCrash, AHostThatLiesIsNoticed) {
    uint64_t wrong = 0;
    for (uint64_t at = 40; at < 120; at += 4) {
        Workload work;
        if (!run_until(at, work, true)) break;
        m_image.set(m_image.state.after_power_failure(m_random));
        wrong += violations(m_image, work.model);
    }
    EXPECT_GT(wrong, 0U);
}

// One write or flush fails. The disk goes on, or refuses to where the host lost what it had taken, and an image opened
// afterwards has what was flushed.
TEST_P(DiskCrash, OneOperationFails) {
    unsigned went_on = 0;
    unsigned refused = 0;
    for (auto failure : {ErrorCode::Io, ErrorCode::NoSpace}) {
        for (uint64_t at = 0;; ++at) {
            m_image.rewind();
            m_image.state.fail_at = at;
            m_image.state.failure = failure;
            Workload work;
            {
                auto disk = m_image.open();
                if (!disk) {
                    EXPECT_EQ(disk.error().code(), failure);
                } else {
                    work.run(**disk, 30, true);
                    (work.failures_in_a_row > 3 ? refused : went_on) += work.failures > 0 ? 1 : 0;
                    // What is read is what was written, whatever failed.
                    ByteVector all((*disk)->size());
                    ASSERT_TRUE((*disk)->read(0, all));
                    for (uint64_t sector = 0; sector < k_sectors; ++sector)
                        ASSERT_EQ(writing_of(Bytes(all).subspan(sector * 512, 512), sector), work.content[sector]);
                }
            }
            bool const reached = m_image.state.operations > at;
            m_image.set(m_image.state.after_power_failure(m_random));
            ASSERT_EQ(violations(m_image, work.model), 0U) << "failed at " << at;
            if (!reached) break;
        }
    }
    EXPECT_GT(went_on, 0U);
    if (GetParam() == DiskProtection::Authenticated) {
        EXPECT_GT(refused, 0U);
    }
}

// The process is killed at every system call that writes; files keep what they were given.
TEST_P(DiskCrash, ProcessIsKilledAnywhere) {
    coffer::tests::TempFolder folder;
    auto const path = folder.path() / "image";
    auto* shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(shared, MAP_FAILED);
    auto* acknowledged = new (shared) std::atomic<uint32_t>;
    auto work_in_file = [&](Workload& work, int steps) {
        auto disk = open_disk(path, *m_image.secret, m_image.expected);
        if (!disk) return 1;
        work.run(**disk, steps);
        return (*disk)->close() ? 0 : 2;
    };
    unsigned stops = 0;
    for (unsigned at = 0; at < 3000; ++at) {
        ASSERT_TRUE(replace_file(path, m_image.bytes));
        *acknowledged = 0;
        auto run = run_traced(
            [&] {
                Workload work;
                work.acknowledged = acknowledged;
                return work_in_file(work, 60);
            },
            {{at, Fault::Kill}});
        // The same work in memory, as far as it was acknowledged, and what was begun after.
        DiskImage twin(DiskProtection::Unauthenticated, k_sectors * 512);
        Workload same;
        same.most_flushes = *acknowledged;
        same.run(**twin.open(), 60);
        m_image.set(*read_file(path, size_t{1} << 30));
        ASSERT_EQ(violations(m_image, same.model), 0U) << "killed at " << at;
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            break;
        }
        ++stops;
    }
    EXPECT_GT(stops, 40U);
    RecordProperty("stop_points", static_cast<int>(stops));
    ::munmap(shared, 4096);
}

// A home with an authenticated disk: made whole or not at all, wherever the process is stopped.
TEST(DiskHomes, StoppedAnywhereInCreate) {
    coffer::tests::TempFolder folder;
    bool finished = false;
    unsigned stops = 0;
    auto const content = pattern(64 << 10, 9);
    for (unsigned at = 0; at < 400 && !finished; ++at) {
        std::filesystem::remove_all(folder.path() / "root");
        std::filesystem::remove_all(folder.path() / "state");
        Host host(folder.path());
        auto config = make_config("vm");
        auto secret = *DiskSecret::random();
        config.disks = {{.path = "disk-0", .protection = DiskProtection::Authenticated, .uuid = secret.disk}};
        auto create = [&]() -> Result<void> {
            DiskSecrets secrets;
            secrets.add(copy_of(secret));
            auto encoded = secrets.encode();
            HomeSeal seal{
                *crypto::random_uuid(), *KeyId::parse("1/some-key"), {bytes_of("wrapped")}, copy_of(host.key())};
            NewDisks disks{encoded.expose(), [&](std::filesystem::path const& home) -> Result<void> {
                               NewDisk disk{config.uuid, DiskProtection::Authenticated, 64 << 10, 64 << 10};
                               TRY(create_disk(home / "disk-0", secret, disk));
                               auto opened = TRY(open_disk(home / "disk-0", secret, {config.uuid, disk.protection}));
                               TRY(opened->write(0, content));
                               return opened->close();
                           }};
            return create_home(host.location("vm"), config, bytes_of("variables"), std::move(seal), {}, disks);
        };
        auto run = run_traced([&] { return create() ? 0 : 1; }, {{at, Fault::Kill}});
        finished = !run.killed;
        if (!finished) ++stops;
        auto home = host.open("vm");
        if (!home) {
            EXPECT_FALSE(finished);
            ASSERT_EQ(home.error().code(), ErrorCode::NotFound) << at << ": " << home.error().message();
            ASSERT_TRUE(create()) << at;
            home = host.open("vm");
        }
        ASSERT_TRUE(home);
        // Opened twice: the second time by what the first noted in the home.
        for (int again = 0; again < 2; ++again) {
            auto disks = HomeDisks::open(**home);
            ASSERT_TRUE(disks) << at << ": " << disks.error().message();
            ByteVector bytes(content.size());
            ASSERT_TRUE(disks->backends().at(0)->read(0, bytes));
            EXPECT_EQ(bytes, content);
            ASSERT_TRUE(disks->close());
        }
    }
    EXPECT_TRUE(finished);
    EXPECT_GT(stops, 20U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

// The home refuses an image older than the one that it last used.
TEST(DiskHomes, RefuseOldImages) {
    coffer::tests::TempFolder folder;
    Host host(folder.path());
    auto config = make_config("vm");
    auto secret = *DiskSecret::random();
    config.disks = {{.path = "disk-0", .protection = DiskProtection::Authenticated, .uuid = secret.disk}};
    DiskSecrets secrets;
    secrets.add(copy_of(secret));
    auto encoded = secrets.encode();
    HomeSeal seal{*crypto::random_uuid(), *KeyId::parse("1/some-key"), {bytes_of("wrapped")}, copy_of(host.key())};
    NewDisks disks{encoded.expose(), [&](std::filesystem::path const& home) {
                       return create_disk(home / "disk-0", secret,
                                          {config.uuid, DiskProtection::Authenticated, 64 << 10, 64 << 10});
                   }};
    ASSERT_TRUE(create_home(host.location("vm"), config, bytes_of("variables"), std::move(seal), {}, disks));
    auto const image = host.location("vm").folder() / "disk-0";
    auto const old = *read_file(image, 64 << 20);
    auto home = *host.open("vm");
    {
        auto opened = *HomeDisks::open(*home);
        ASSERT_TRUE(opened.backends()[0]->write(0, pattern(k_unit, 1)));
        ASSERT_TRUE(opened.close());
    }
    auto const now = *read_file(image, 64 << 20);
    ASSERT_TRUE(HomeDisks::open(*home));
    ASSERT_TRUE(replace_file(image, old));
    auto refused = HomeDisks::open(*home);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::Integrity);
    EXPECT_NE(refused.error().message().find("rolled back"), std::string::npos);
    EXPECT_NE(refused.error().message().find(image.native()), std::string::npos);
}

} // namespace
} // namespace coffer::vmm::tests
