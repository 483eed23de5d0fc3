// Overlays and disks that are made of them, against a disk in memory.
#include <thread>

#include <gtest/gtest.h>

#include "tests/support/temp_folder.hpp"
#include "tests/unit/disk/disk_fixture.hpp"
#include "vmm/disk/layered_file.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_cluster = overlay_spec::k_cluster_size;
constexpr uint64_t k_size = 5 * k_cluster + 1536; // the last cluster is not whole
constexpr uint64_t k_sector = 512;

Uuid uuid_of(unsigned n) {
    return Uuid({static_cast<std::byte>(n), std::byte{0x11}});
}

// A new overlay's file.
ByteVector new_overlay(Uuid const& id, uint64_t size = k_size) {
    coffer::tests::TempFolder folder;
    EXPECT_TRUE(OverlayFile::create(folder.path() / "o", {id, size}));
    return *read_file(folder.path() / "o", size_t{1} << 24);
}

VolatileDisk::State state_of(ByteVector bytes) {
    VolatileDisk::State state;
    state.current = bytes;
    state.durable = std::move(bytes);
    return state;
}

std::unique_ptr<OverlayFile> open_overlay(VolatileDisk::State& state, Uuid const& id, uint64_t size = k_size) {
    auto overlay = OverlayFile::open(std::make_unique<VolatileDisk>(state), "overlay", {id, size});
    EXPECT_TRUE(overlay) << overlay.error().message();
    return overlay ? std::move(*overlay) : nullptr;
}

ByteVector all_of(devices::BlockBackend& disk) {
    ByteVector all(disk.size());
    EXPECT_TRUE(disk.read(0, all));
    return all;
}

struct Change {
    uint64_t offset = 0;
    ByteVector bytes; // zeroes: written as such
};

class Changes {
public:
    explicit Changes(unsigned seed) : m_random(seed) {}
    Change next() {
        uint64_t const sectors = k_size / k_sector;
        uint64_t const first = m_random() % sectors;
        uint64_t const most = m_random() % 4 == 0 ? sectors : 40;
        uint64_t const count = 1 + m_random() % std::min(most, sectors - first);
        Change change{first * k_sector, ByteVector(count * k_sector)};
        if (m_random() % 4 != 0) change.bytes = pattern(change.bytes.size(), m_random());
        return change;
    }
    uint64_t number(uint64_t below) { return m_random() % below; }

private:
    std::mt19937_64 m_random;
};

Result<void> apply(devices::BlockBackend& disk, Change const& change) {
    if (all_zero(change.bytes)) return disk.write_zeroes(change.offset, change.bytes.size());
    return disk.write(change.offset, change.bytes);
}
void apply(ByteVector& model, Change const& change) {
    std::ranges::copy(change.bytes, model.begin() + static_cast<std::ptrdiff_t>(change.offset));
}

TEST(LayeredFile, ReadsAsADiskWouldWhateverItsLayers) {
    for (unsigned seed = 0; seed < 20; ++seed) {
        Changes changes(seed);
        ByteVector model = pattern(k_size, seed);
        auto base = state_of(model);
        std::vector<std::unique_ptr<VolatileDisk::State>> overlays;
        std::vector<Uuid> chain;
        std::map<Uuid, ByteVector> frozen;
        LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
        for (unsigned step = 0; step < 60; ++step) {
            auto const what = changes.number(10);
            if (what == 0 && chain.size() < 5) {
                auto const id = uuid_of(step);
                overlays.push_back(std::make_unique<VolatileDisk::State>(state_of(new_overlay(id))));
                disk.push(open_overlay(*overlays.back(), id));
                chain.push_back(id);
            } else if (what == 1 && !chain.empty()) {
                auto const at = changes.number(chain.size());
                bool committed = false;
                auto merged = disk.merge(chain[at],
                                         [&]() -> Result<void> {
                                             committed = true;
                                             return {};
                                         },
                                         {});
                ASSERT_TRUE(merged) << merged.error().message();
                EXPECT_TRUE(committed);
                chain.erase(chain.begin() + static_cast<std::ptrdiff_t>(at));
            } else {
                auto const change = changes.next();
                apply(model, change);
                ASSERT_TRUE(apply(disk, change));
            }
            ASSERT_EQ(all_of(disk), model) << "seed " << seed << " step " << step;
        }
        while (!chain.empty()) {
            ASSERT_TRUE(disk.merge(chain.back(), [] { return Result<void>(); }, {}));
            chain.pop_back();
        }
        EXPECT_EQ(base.current, model);
    }
}

TEST(LayeredFile, WhatIsBelowStaysAsItWas) {
    ByteVector const before = pattern(k_size, 1);
    auto base = state_of(before);
    auto top = state_of(new_overlay(uuid_of(1)));
    LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
    disk.push(open_overlay(top, uuid_of(1)));
    Changes changes(2);
    for (int n = 0; n < 30; ++n) ASSERT_TRUE(apply(disk, changes.next()));
    ASSERT_TRUE(disk.discard(0, k_size));
    EXPECT_EQ(all_of(disk), ByteVector(k_size));
    EXPECT_EQ(base.current, before);
    EXPECT_EQ(base.operations, 0U);
}

TEST(LayeredFile, DiscardOfAPartLeavesOldOrZero) {
    ByteVector const before = pattern(k_size, 1);
    auto base = state_of(before);
    auto top = state_of(new_overlay(uuid_of(1)));
    LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
    disk.push(open_overlay(top, uuid_of(1)));
    ASSERT_TRUE(disk.discard(k_sector, k_cluster));
    auto const now = all_of(disk);
    for (uint64_t at = 0; at < k_size; ++at)
        ASSERT_TRUE(now[at] == before[at] || (at >= k_sector && at < k_sector + k_cluster && now[at] == std::byte{0}));
}

// Flushed sectors are what was written; each other one is as of the last flush, or of some write since.
TEST(LayeredFile, WhatWasFlushedOutlivesAPowerFailure) {
    ByteVector const before = pattern(k_size, 7);
    ByteVector const fresh = new_overlay(uuid_of(1));
    std::mt19937 random(3);
    unsigned stops = 0;
    for (uint64_t stop = 0;; ++stop) {
        auto base = state_of(before);
        auto top = state_of(fresh);
        top.power_off_at = stop;
        std::vector<ByteVector> possible{before}; // states since the last flush
        bool died = false;
        {
            LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
            disk.push(open_overlay(top, uuid_of(1)));
            Changes changes(11);
            for (int n = 0; n < 40 && !died; ++n) {
                auto const change = changes.next();
                possible.push_back(possible.back());
                apply(possible.back(), change);
                died = !apply(disk, change);
                if (died || n % 5 != 4) continue;
                died = !disk.flush();
                if (!died) possible.erase(possible.begin(), possible.end() - 1);
            }
        }
        auto after = state_of(top.after_power_failure(random));
        auto frozen = state_of(before);
        LayeredFile disk(std::make_unique<VolatileDisk>(frozen), "disk");
        disk.push(open_overlay(after, uuid_of(1)));
        auto const now = all_of(disk);
        for (uint64_t at = 0; at < k_size; at += k_sector) {
            Bytes const sector = Bytes(now).subspan(at, k_sector);
            bool const known = std::ranges::any_of(possible, [&](auto const& one) {
                return std::ranges::equal(sector, Bytes(one).subspan(at, k_sector));
            });
            ASSERT_TRUE(known) << "power off at " << stop << ": sector at " << at;
        }
        if (!died) break;
        ++stops;
    }
    EXPECT_GT(stops, 40U);
}

// Whatever of a merge is done, and whatever of that the power spared, the disk reads the same through the layer.
TEST(LayeredFile, MergeThatWasCutShortChangesNothing) {
    ByteVector model = pattern(k_size, 7);
    ByteVector const before = model;
    std::mt19937 random(5);
    auto top = state_of(new_overlay(uuid_of(1)));
    {
        auto base = state_of(before);
        LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
        disk.push(open_overlay(top, uuid_of(1)));
        Changes changes(12);
        for (int n = 0; n < 12; ++n) {
            auto const change = changes.next();
            apply(model, change);
            ASSERT_TRUE(apply(disk, change));
        }
        ASSERT_TRUE(disk.flush());
    }
    unsigned stops = 0;
    for (uint64_t stop = 0;; ++stop) {
        auto base = state_of(before);
        base.power_off_at = stop;
        auto layer = state_of(top.current);
        bool committed = false;
        {
            LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
            disk.push(open_overlay(layer, uuid_of(1)));
            auto merged = disk.merge(uuid_of(1),
                                     [&]() -> Result<void> {
                                         committed = true;
                                         return {};
                                     },
                                     {});
            ASSERT_EQ(merged.has_value(), committed);
        }
        auto after = state_of(base.after_power_failure(random));
        if (committed) {
            EXPECT_EQ(after.current, model);
            break;
        }
        LayeredFile disk(std::make_unique<VolatileDisk>(after), "disk");
        disk.push(open_overlay(layer, uuid_of(1)));
        ASSERT_EQ(all_of(disk), model) << stop;
        ASSERT_TRUE(disk.merge(uuid_of(1), [] { return Result<void>(); }, {}));
        ASSERT_EQ(after.current, model) << stop;
        ++stops;
    }
    EXPECT_GT(stops, 3U);
}

TEST(LayeredFile, WritesGoOnWhileTheUppermostIsMerged) {
    auto base = state_of(pattern(k_size, 1));
    auto top = state_of(new_overlay(uuid_of(1)));
    LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
    disk.push(open_overlay(top, uuid_of(1)));
    ByteVector model = base.current;
    std::atomic<unsigned> done{0};
    std::thread writer([&] {
        Changes changes(4);
        for (int n = 0; n < 3000; ++n) {
            auto const change = changes.next();
            apply(model, change);
            EXPECT_TRUE(apply(disk, change));
            ++done;
        }
    });
    while (done < 100) std::this_thread::yield();
    ASSERT_TRUE(disk.merge(uuid_of(1), [] { return Result<void>(); }, {}));
    writer.join();
    EXPECT_EQ(all_of(disk), model);
    EXPECT_EQ(base.current, model) << "nothing is left in the layer";
}

TEST(LayeredFile, MergeThatIsGivenUpOrNotCommittedLeavesTheLayer) {
    auto base = state_of(pattern(k_size, 1));
    auto top = state_of(new_overlay(uuid_of(1)));
    LayeredFile disk(std::make_unique<VolatileDisk>(base), "disk");
    disk.push(open_overlay(top, uuid_of(1)));
    ByteVector const content = pattern(k_size, 9);
    ASSERT_TRUE(disk.write(0, content));
    auto given_up =
        disk.merge(uuid_of(1), [] { return Result<void>(); }, {.progress = {}, .cancelled = [] { return true; }});
    ASSERT_FALSE(given_up);
    EXPECT_EQ(given_up.error().code(), ErrorCode::Cancelled);
    auto failed = disk.merge(uuid_of(1), [] { return Result<void>(make_error(ErrorCode::Io, "no")); }, {});
    ASSERT_FALSE(failed);
    EXPECT_EQ(all_of(disk), content);
    Changes changes(1);
    auto const change = changes.next();
    ASSERT_TRUE(apply(disk, change));
    auto expected = content;
    apply(expected, change);
    EXPECT_EQ(all_of(disk), expected);
    disk.stop_writing();
    EXPECT_FALSE(disk.write(0, content));
    EXPECT_FALSE(disk.flush());
    EXPECT_EQ(all_of(disk), expected);
}

TEST(OverlayFile, AnotherOneIsRefused) {
    auto const good = new_overlay(uuid_of(1));
    auto opened = [](ByteVector bytes, OverlayFile::Identity const& identity) {
        auto state = state_of(std::move(bytes));
        auto overlay = OverlayFile::open(std::make_unique<VolatileDisk>(state), "overlay", identity);
        return overlay ? std::optional<ErrorCode>() : overlay.error().code();
    };
    EXPECT_EQ(opened(good, {uuid_of(1), k_size}), std::nullopt);
    EXPECT_EQ(opened(good, {uuid_of(2), k_size}), ErrorCode::Integrity);
    EXPECT_EQ(opened(good, {uuid_of(1), k_size + 512}), ErrorCode::Integrity);
    EXPECT_EQ(opened(good, {uuid_of(1), 2 * k_size}), ErrorCode::Integrity);
    for (size_t at : {size_t{0}, overlay_spec::k_version_at, overlay_spec::k_cluster_size_at,
                      overlay_spec::k_content_size_at, overlay_spec::k_id_at, overlay_spec::k_reserved_at}) {
        auto bad = good;
        bad[at] ^= std::byte{1};
        EXPECT_EQ(opened(bad, {uuid_of(1), k_size}), ErrorCode::Integrity) << at;
    }
    coffer::tests::TempFolder folder;
    auto missing = OverlayFile::open(folder.path() / "none", {uuid_of(1), k_size}, false);
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code(), ErrorCode::Integrity);
}

// The bytes of the format, as docs/formats/disk.md says.
TEST(OverlayFile, Format) {
    auto state = state_of(new_overlay(uuid_of(1)));
    auto overlay = open_overlay(state, uuid_of(1));
    ByteVector const cluster = pattern(k_cluster, 3);
    ASSERT_TRUE(overlay->write(2 * k_cluster, cluster));
    overlay->hold(2);
    EXPECT_EQ(state.current[4096], std::byte{0}) << "said before it is durable";
    ASSERT_TRUE(overlay->flush());
    auto const& bytes = state.durable;
    EXPECT_EQ(std::string_view(reinterpret_cast<char const*>(bytes.data()), 8), "COFROVLY");
    EXPECT_EQ(load_le<uint32_t>(bytes, 8), 1U);
    EXPECT_EQ(load_le<uint32_t>(bytes, 12), 65536U);
    EXPECT_EQ(load_le<uint64_t>(bytes, 16), k_size);
    EXPECT_TRUE(std::ranges::equal(Bytes(bytes).subspan(24, 16), uuid_of(1).bytes()));
    EXPECT_EQ(bytes[4096], std::byte{1U << 2});
    EXPECT_TRUE(std::ranges::equal(Bytes(bytes).subspan(65536 + 2 * 65536, 65536), cluster));
    EXPECT_EQ(bytes.size(), 65536 + 6 * 65536U);
}

} // namespace
} // namespace coffer::vmm::tests
