// Batches as hostile bytes, and sets of pages.
#include <zstd.h>

#include "tests/unit/migrate/memory_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

namespace spec = batch_spec;

ByteVector batch_of(uint8_t kind, uint8_t flags, std::vector<PageRun> const& runs, size_t content = 0) {
    ByteVector batch;
    encode_batch_head(batch, kind, flags, runs);
    batch.resize(batch.size() + content, std::byte{0x5A});
    return batch;
}

class HostileBatches : public MemoryEngine {
protected:
    static constexpr uint64_t k_pages = k_size / k_ram_page;
    void expect_refused(ByteVector const& batch) {
        auto before = m_receiver->digest();
        auto taken = m_receiver->take(batch);
        ASSERT_FALSE(taken);
        EXPECT_EQ(taken.error().code(), ErrorCode::Corrupt) << taken.error().message();
        EXPECT_EQ(m_receiver->digest(), before);
        EXPECT_EQ(m_receiver->pages_seen(), 0U);
    }
};

TEST_F(HostileBatches, EachFieldIsChecked) {
    auto const good = batch_of(spec::k_content, 0, {{4, 1}, {9, 2}}, 3 * k_ram_page);
    for (size_t size = 0; size < good.size(); size += size < 40 ? 1 : 997)
        expect_refused(ByteVector(good.begin(), good.begin() + static_cast<ptrdiff_t>(size)));
    auto longer = good;
    longer.push_back({});
    expect_refused(longer);
    auto with = [&](size_t at, unsigned value) {
        auto changed = good;
        changed[at] = static_cast<std::byte>(value);
        return changed;
    };
    for (unsigned kind : {0U, 3U, 255U}) expect_refused(with(spec::k_kind_at, kind));
    for (unsigned flags : {2U, 128U, 255U}) expect_refused(with(spec::k_flags_at, flags));
    for (size_t at = spec::k_reserved_at; at < spec::k_header; ++at) expect_refused(with(at, 1));
    expect_refused(with(spec::k_runs_at, 0));
    expect_refused(with(spec::k_runs_at, 1));
    expect_refused(with(spec::k_runs_at + 1, 0xFF));
    expect_refused(with(spec::k_header + spec::k_run_count_at, 0));
    expect_refused(with(spec::k_header + spec::k_run_count_at, 2)); // one page more than there is content for
    expect_refused(with(spec::k_flags_at, spec::k_flag_zstd));      // it is no frame

    expect_refused(batch_of(spec::k_content, 0, {{k_pages, 1}}, k_ram_page));
    expect_refused(batch_of(spec::k_content, 0, {{k_pages - 1, 2}}, 2 * k_ram_page));
    expect_refused(batch_of(spec::k_content, 0, {{~uint64_t{0}, 1}}, k_ram_page));
    expect_refused(batch_of(spec::k_content, 0, {{5, 1}, {5, 1}}, 2 * k_ram_page));
    expect_refused(batch_of(spec::k_content, 0, {{5, 2}, {4, 1}}, 3 * k_ram_page));
    expect_refused(batch_of(spec::k_content, 0, {{0, spec::k_max_pages + 1}}, (spec::k_max_pages + 1) * k_ram_page));
    expect_refused(batch_of(spec::k_zeros, spec::k_flag_zstd, {{0, 1}}));
    expect_refused(batch_of(spec::k_zeros, 0, {{0, 1}}, 1));
    expect_refused(batch_of(spec::k_zeros, 0, {{1, UINT32_MAX}}));
    expect_refused(batch_of(spec::k_zeros, 0, {{~uint64_t{0} - 2, UINT32_MAX}}));
    // Nothing of all this was written.
    for (auto part : m_target.parts())
        for (auto byte : part) ASSERT_EQ(byte, std::byte{0});
    EXPECT_TRUE(m_receiver->take(good));
    EXPECT_EQ(m_receiver->pages_seen(), 3U);
}

TEST_F(HostileBatches, CompressedContentOfAnotherSize) {
    for (size_t size : {size_t{0}, k_ram_page - 1, k_ram_page + 1, size_t{16} << 20}) {
        ByteVector const content(size, std::byte{7});
        ByteVector packed(ZSTD_compressBound(size));
        packed.resize(ZSTD_compress(packed.data(), packed.size(), content.data(), content.size(), 1));
        ByteVector batch;
        encode_batch_head(batch, spec::k_content, spec::k_flag_zstd, std::array{PageRun{0, 1}});
        batch.insert(batch.end(), packed.begin(), packed.end());
        expect_refused(batch);
    }
}

TEST_F(HostileBatches, AllOfRamAsOneRunOfZeros) {
    fill(0, 1);
    ByteVector content(k_ram_page, std::byte{1});
    auto batch = batch_of(spec::k_content, 0, {{0, 1}, {k_pages - 1, 1}}, 2 * k_ram_page);
    ASSERT_TRUE(m_receiver->take(batch));
    ASSERT_TRUE(m_receiver->take(batch_of(spec::k_zeros, 0, {{0, static_cast<uint32_t>(k_pages)}})));
    EXPECT_EQ(m_receiver->pages_seen(), k_pages);
    for (auto part : m_target.parts())
        for (auto byte : part) ASSERT_EQ(byte, std::byte{0});
}

TEST(PageSets, MatchASetOfNumbers) {
    std::mt19937_64 random(11);
    for (uint64_t pages : {1U, 63U, 64U, 65U, 130U, 1000U}) {
        PageSet set(pages);
        std::set<uint64_t> model;
        for (int step = 0; step < 200; ++step) {
            uint64_t const first = random() % pages;
            uint64_t const count = random() % (pages - first + 1);
            std::vector<uint64_t> bits((count + 63) / 64);
            for (auto& word : bits) word = random() & random() & random();
            set.add_bits(bits, first, count);
            for (uint64_t i = 0; i < count; ++i)
                if (bits[i / 64] >> i % 64 & 1) model.insert(first + i);
            uint64_t const gone = random() % pages;
            set.remove(gone);
            model.erase(gone);
            ASSERT_EQ(set.count(), model.size());
            std::set<uint64_t> found;
            for (auto page = set.next(0); page; page = set.next(*page + 1)) found.insert(*page);
            ASSERT_EQ(found, model);
        }
        set.add_all();
        EXPECT_EQ(set.count(), pages);
        EXPECT_EQ(set.next(pages - 1), pages - 1);
        EXPECT_EQ(set.next(pages), std::nullopt);
    }
}

} // namespace
} // namespace coffer::vmm::tests
