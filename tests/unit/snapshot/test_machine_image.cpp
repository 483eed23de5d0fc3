#include "tests/unit/snapshot/image_fixture.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>

#include <fcntl.h>

#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::vmm::tests {
namespace {

struct Form {
    bool compress;
    unsigned threads;
};

class MachineImage : public ImageTest, public testing::WithParamInterface<Form> {
protected:
    ImageOptions options() const { return {.compress = GetParam().compress, .threads = GetParam().threads}; }
};

TEST_P(MachineImage, GivesBackWhatWasWritten) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    Ram low(size_t{2} << 20);
    Ram high((size_t{1} << 20) + size_t{3} * 4096);
    fill_with_everything(low.bytes());
    fill_with_everything(high.bytes());
    std::array<Bytes, 2> parts{low.bytes(), high.bytes()};
    ByteVector whole(low.bytes().begin(), low.bytes().end());
    append(whole, high.bytes());
    for (size_t state_size : {size_t{0}, size_t{1}, size_t{65536}, size_t{200'000}}) {
        auto state = ByteVector(state_size, std::byte{0x77});
        uint64_t told = 0;
        auto with_progress = options();
        with_progress.progress = [&](uint64_t done, uint64_t total) {
            EXPECT_LE(done, total);
            EXPECT_EQ(total, state_size + whole.size());
            told = std::max(told, done);
        };
        write(**home, state, parts, with_progress);
        auto image = open(**home);
        ASSERT_TRUE(image) << image.error().message();
        EXPECT_EQ((*image)->memory_size(), whole.size());
        EXPECT_EQ(*(*image)->read_state(), state);
        auto all = read_all(**image);
        ASSERT_TRUE(all) << all.error().message();
        EXPECT_TRUE(*all == whole);
    }
    // Three of five clusters are zeros or mostly, and need no room.
    EXPECT_LT(std::filesystem::file_size(image_path()), whole.size() * 3 / 4);
    auto on_disk = content(image_path());
    EXPECT_EQ(std::search(on_disk.begin(), on_disk.end(), as_bytes(k_planted).begin(), as_bytes(k_planted).end()),
              on_disk.end());
}

// Bits all over the file: in header, table, and every kind of cluster. The table's and header's are found when the
// image is opened, the others when their cluster is read, and none goes unseen but what fills up a page behind
// compressed clusters, which nothing reads.
TEST_P(MachineImage, EveryFlippedBitIsFound) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    Ram ram(size_t{1} << 20);
    fill_with_everything(ram.bytes());
    std::array<Bytes, 1> parts{ram.bytes()};
    write(**home, ByteVector(5000, std::byte{0x77}), parts, options());
    auto good = content(image_path());
    auto opened = (*home)->open_image(k_image_name);
    ASSERT_TRUE(opened);
    auto fd = *open_file(image_path(), O_RDONLY);
    auto table = read_image_table(fd.get(), *opened);
    ASSERT_TRUE(table);
    std::vector<bool> means_something(good.size());
    auto mark = [&](uint64_t from, uint64_t size) {
        std::fill_n(means_something.begin() + static_cast<std::ptrdiff_t>(from), size, true);
    };
    mark(0, home_spec::data::k_header_size);
    for (auto const& entry : table->entries)
        if (entry.pages != 0) mark(entry.offset, entry.size);
    mark(table->at, good.size() - table->at);
    auto const filling = static_cast<size_t>(std::ranges::count(means_something, false));
    EXPECT_LT(filling, options().compress ? options().threads * 4096 : 1U);
    std::mt19937 random(3);
    unsigned missed = 0;
    for (unsigned i = 0; i < 160; ++i) {
        size_t at = i < 40 ? random() % 4096 : i < 80 ? good.size() - 1 - random() % 512 : random() % good.size();
        if (!means_something[at]) continue;
        auto changed = good;
        changed[at] ^= static_cast<std::byte>(1U << random() % 8);
        put(image_path(), changed);
        auto image = open(**home);
        bool found = !image;
        if (image) {
            auto state = (*image)->read_state();
            auto all = read_all(**image);
            found = !state || !all;
            for (auto const* error : {state ? nullptr : &state.error(), all ? nullptr : &all.error()})
                if (error) {
                    EXPECT_EQ(error->code(), ErrorCode::Integrity) << error->message();
                    EXPECT_NE(error->message().find(k_image_name), std::string::npos);
                }
        } else {
            EXPECT_EQ(image.error().code(), ErrorCode::Integrity) << image.error().message();
        }
        if (!found) ++missed;
    }
    EXPECT_EQ(missed, 0U);
    put(image_path(), good);
    EXPECT_TRUE(read_all(**open(**home)));
}

INSTANTIATE_TEST_SUITE_P(Forms, MachineImage,
                         testing::Values(Form{false, 1}, Form{false, 3}, Form{true, 1}, Form{true, 3}));

// Memory that is written while somebody changes it, and again where it changed, is in the end what it then is.
TEST_P(MachineImage, HoldsMemoryThatChangedWhileItWasWritten) {
    constexpr unsigned k_clusters = 40;
    constexpr unsigned k_rounds = 5;
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    Ram ram(k_clusters * image_spec::k_cluster + 3 * 4096);
    fill_with_everything(ram.bytes());
    auto writing = (*home)->begin_image(k_image_name);
    ASSERT_TRUE(writing);
    auto image = ImageWriter::create(*writing, 200'000, {ram.bytes()});
    ASSERT_TRUE(image) << image.error().message();

    std::array<std::atomic<bool>, k_clusters + 1> changed{};
    std::atomic<bool> stop{false};
    // Clusters become zeros and other things, in whole and in part; the last stays what it was.
    std::thread guest([&] {
        std::mt19937 random(11);
        while (!stop) {
            size_t const cluster = random() % k_clusters;
            auto page = ram.bytes().subspan(cluster * image_spec::k_cluster + random() % 16 * 4096, 4096);
            if (random() % 3 == 0) page = ram.bytes().subspan(cluster * image_spec::k_cluster, image_spec::k_cluster);
            auto const value = static_cast<int>(random() % 3);
            std::memset(page.data(), value, page.size());
            changed[cluster] = true;
        }
    });
    std::vector<uint64_t> clusters(k_clusters + 1);
    std::iota(clusters.begin(), clusters.end(), uint64_t{0});
    for (unsigned round = 0; round < k_rounds; ++round) {
        auto written = (*image)->write_ahead(clusters, options());
        EXPECT_TRUE(written) << written.error().message();
        clusters.clear();
        if (round + 1 == k_rounds) {
            stop = true;
            guest.join();
        }
        for (size_t i = 0; i < changed.size(); ++i)
            if (changed[i].exchange(false)) clusters.push_back(i);
    }
    auto const state = ByteVector(70'000, std::byte{0x77});
    auto root = (*image)->finish(state, clusters, options());
    ASSERT_TRUE(root) << root.error().message();
    ASSERT_TRUE((*home)->commit_image(*writing, *root));
    auto expect_whole = [&] {
        auto saved = open(**home);
        ASSERT_TRUE(saved) << saved.error().message();
        EXPECT_EQ(*(*saved)->read_state(), state);
        auto all = read_all(**saved);
        ASSERT_TRUE(all) << all.error().message();
        EXPECT_TRUE(std::ranges::equal(*all, ram.bytes()));
    };
    expect_whole();

    // No unit has the number of another writing of its cluster, which would have been made under the same nonce.
    auto opened = (*home)->open_image(k_image_name);
    ASSERT_TRUE(opened);
    auto table = read_image_table(open_file(image_path(), O_RDONLY)->get(), *opened);
    ASSERT_TRUE(table);
    ASSERT_EQ(table->state_clusters, 4U);
    for (uint64_t i : clusters) {
        auto const& entry = table->entries[table->state_clusters + i];
        if (entry.pages != 0) {
            EXPECT_EQ(entry.unit_of(7), 7 + (uint64_t{k_rounds} << 40)) << i;
        }
    }
    EXPECT_EQ(table->entries.back().unit_of(7), 7U);

    // The same under other keys.
    auto again = (*home)->begin_image(k_image_name);
    ASSERT_TRUE(again);
    auto rewritten = rewrite_machine_image(*opened, *again, {});
    ASSERT_TRUE(rewritten) << rewritten.error().message();
    ASSERT_TRUE((*home)->commit_image(*again, *rewritten));
    expect_whole();
}

// Two clusters of equal size exchanged, one replayed from an older image, and the file cut.
TEST_F(ImageTest, MovedClustersAndCutsAreFound) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    Ram ram(size_t{1} << 20);
    for (auto& b : ram.bytes()) b = std::byte{1};
    std::array<Bytes, 1> parts{ram.bytes()};
    write(**home, {}, parts, {.threads = 1});
    auto good = content(image_path());
    auto cluster = [](ByteVector& bytes, size_t n) {
        return bytes.begin() + static_cast<std::ptrdiff_t>(4096 + n * 65536);
    };
    auto expect_found = [&](ByteVector const& bytes) {
        put(image_path(), bytes);
        auto image = open(**home);
        if (image) {
            EXPECT_FALSE(read_all(**image));
        }
    };
    auto swapped = good;
    std::swap_ranges(cluster(swapped, 0), cluster(swapped, 1), cluster(swapped, 1));
    expect_found(swapped);
    for (size_t size : {size_t{0}, size_t{100}, size_t{4096}, good.size() / 2, good.size() - 1})
        expect_found(ByteVector(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)));
    auto longer = good;
    longer.push_back(std::byte{0});
    expect_found(longer);

    put(image_path(), good);
    write(**home, {}, parts, {.threads = 1});
    auto newer = content(image_path());
    auto replayed = newer;
    std::copy_n(cluster(good, 3), 65536, cluster(replayed, 3));
    expect_found(replayed);
    // The older image as a whole is not the one that the home names.
    put(image_path(), good);
    EXPECT_FALSE(open(**home));
    put(image_path(), newer);
    EXPECT_TRUE(read_all(**open(**home)));
}

TEST_F(ImageTest, CanBeGivenUp) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    Ram ram(size_t{8} << 20);
    fill_with_everything(ram.bytes());
    std::array<Bytes, 1> parts{ram.bytes()};
    auto writing = (*home)->begin_image(k_image_name);
    ASSERT_TRUE(writing);
    auto root = write_machine_image(*writing, {}, parts, {.cancelled = [] { return true; }});
    ASSERT_FALSE(root);
    EXPECT_EQ(root.error().code(), ErrorCode::Cancelled);
    EXPECT_FALSE((*home)->has_file(k_image_name));
}

} // namespace
} // namespace coffer::vmm::tests
