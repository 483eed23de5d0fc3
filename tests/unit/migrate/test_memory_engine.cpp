// RAM arrives as it was, whatever is written between and during rounds.
#include <thread>

#include "tests/unit/migrate/memory_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_mib = uint64_t{1} << 20;

TEST_F(MemoryEngine, RoundsBringWhatWasWritten) {
    for (uint64_t page = 0; page < 100; ++page) fill(k_mib + page * k_ram_page, page + 1);
    fill(0, 500);
    fill(k_size - k_ram_page, 501);
    make_sender();
    EXPECT_TRUE(m_log.running);
    EXPECT_EQ(m_sender->dirty_pages(), k_size / k_ram_page);

    auto first = m_sender->send_round();
    ASSERT_TRUE(first) << first.error().message();
    EXPECT_EQ(first->round, 1U);
    EXPECT_EQ(first->pages, 102U);
    EXPECT_EQ(first->zero_pages, k_size / k_ram_page - 102);
    EXPECT_GT(first->bytes, 102 * k_ram_page);
    EXPECT_LT(first->bytes, 103 * k_ram_page);
    EXPECT_EQ(first->remaining, 0U);
    expect_equal();

    fill(2 * k_mib, 7);
    wipe(k_mib);
    fill(k_size - k_ram_page, 502);
    auto second = m_sender->send_round(); // nothing was found at the end of the first
    ASSERT_TRUE(second);
    EXPECT_EQ(second->pages + second->zero_pages, 0U);
    EXPECT_EQ(second->bytes, 0U);
    EXPECT_EQ(second->remaining, 3U);
    auto third = m_sender->send_round();
    ASSERT_TRUE(third);
    EXPECT_EQ(third->round, 3U);
    EXPECT_EQ(third->pages, 2U);
    EXPECT_EQ(third->zero_pages, 1U);
    EXPECT_EQ(third->remaining, 0U);
    expect_equal();

    fill(3 * k_mib, 8);
    auto rest = m_sender->send_rest();
    ASSERT_TRUE(rest);
    EXPECT_EQ(rest->pages, 1U);
    EXPECT_EQ(m_sender->dirty_pages(), 0U);
    expect_equal();
    auto finished = m_receiver->finish(m_sender->digest());
    EXPECT_TRUE(finished) << finished.error().message();
    m_sender.reset();
    EXPECT_FALSE(m_log.running);
}

// What is written while the other end takes what was sent counts as left, and the wait for it as the round's.
TEST_F(MemoryEngine, RoundsEndWhenTheOtherEndHasTakenThem) {
    fill(k_mib, 1);
    MemorySender::Options options;
    int settled = 0;
    options.settle = [&]() -> Result<void> {
        if (++settled == 2) return make_error(ErrorCode::Io, "lost");
        EXPECT_EQ(m_receiver->pages_seen(), m_receiver->ram_pages());
        fill(2 * k_mib, 2);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        return {};
    };
    make_sender(std::move(options));
    auto first = m_sender->send_round();
    ASSERT_TRUE(first);
    EXPECT_EQ(settled, 1);
    EXPECT_EQ(first->remaining, 1U);
    EXPECT_GE(first->duration, 5 * k_ns_per_ms);
    auto second = m_sender->send_round();
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().message(), "lost");
}

TEST_F(MemoryEngine, CompressedAndByThreads) {
    for (unsigned threads : {1U, 2U, 4U}) {
        for (uint64_t page = 0; page < 1200; ++page) fill(k_mib + page * k_ram_page, threads + page, page % 3 != 0);
        auto made = MemoryReceiver::create(m_target.parts());
        ASSERT_TRUE(made);
        m_receiver = std::move(*made);
        uint64_t last = 0;
        make_sender({.compress = true, .threads = threads, .progress = [&](SendProgress const& progress) {
                         EXPECT_GE(progress.done, last);
                         EXPECT_LE(progress.done, progress.total);
                         last = progress.done;
                     }});
        auto round = m_sender->send_round();
        ASSERT_TRUE(round) << round.error().message();
        EXPECT_EQ(round->pages, 1200U);
        EXPECT_LT(round->bytes, 600 * k_ram_page); // two thirds of it are next to nothing
        EXPECT_EQ(last, k_size / k_ram_page);
        expect_equal();
        EXPECT_TRUE(m_receiver->finish(m_sender->digest()));
        m_sender.reset();
    }
}

// Zeros at every other page: more runs than one batch holds.
TEST_F(MemoryEngine, ManyRunsOfZeros) {
    GuestRam source = make_ram(uint64_t{64} << 20);
    GuestRam target = make_ram(uint64_t{64} << 20);
    ManualLog log(source);
    for (uint64_t page = 0; page < (uint64_t{64} << 20) / k_ram_page; page += 2)
        source.parts()[0][page * k_ram_page + 9] = std::byte{1};
    auto receiver = MemoryReceiver::create(target.parts());
    ASSERT_TRUE(receiver);
    auto sender = MemorySender::create(source, log, [&](Bytes batch) { return (*receiver)->take(batch); }, {});
    ASSERT_TRUE(sender);
    auto round = (*sender)->send_round();
    ASSERT_TRUE(round) << round.error().message();
    EXPECT_EQ(round->pages, 8192U);
    EXPECT_EQ(round->zero_pages, 8192U);
    EXPECT_EQ(std::memcmp(source.parts()[0].data(), target.parts()[0].data(), source.parts()[0].size()), 0);
    EXPECT_TRUE((*receiver)->finish((*sender)->digest()));
}

// RAM on both sides of the hole below 4 GiB, and of the legacy video hole. Pages that are never touched cost nothing.
TEST_F(MemoryEngine, BothPartsOfBigRam) {
    GuestRam source = make_ram(layout::k_low_ram_max + 16 * k_mib);
    GuestRam target = make_ram(layout::k_low_ram_max + 16 * k_mib);
    ManualLog log(source);
    RamPages const numbers(source);
    PageSet pages(numbers.count());
    ASSERT_TRUE(log.start());
    std::vector<uint64_t> const places{0x9F000, 0xC0000, layout::k_low_ram_max - k_ram_page, layout::k_high_ram.value(),
                                       layout::k_high_ram.value() + 16 * k_mib - 1};
    for (uint64_t place : places) ASSERT_TRUE(source.write(GuestPhysAddr(place), as_bytes("x")));
    ASSERT_TRUE(harvest_dirty(log, source, numbers, pages));
    EXPECT_EQ(pages.count(), places.size());
    uint64_t const low = layout::k_low_ram_max / k_ram_page;
    for (uint64_t page : {uint64_t{0x9F}, uint64_t{0xC0}, low - 1, low, low + 16 * k_mib / k_ram_page - 1}) {
        EXPECT_TRUE(pages.contains(page)) << page;
        EXPECT_EQ(numbers.number_of(numbers.page(page).data()), page);
    }
}

TEST_F(MemoryEngine, GivenUp) {
    fill(k_mib, 1);
    fill(6 * k_mib, 1);
    int asked = 0;
    make_sender({.cancelled = [&] { return ++asked == 3; }});
    auto round = m_sender->send_round();
    ASSERT_FALSE(round);
    EXPECT_EQ(round.error().code(), ErrorCode::Cancelled);
    EXPECT_EQ(asked, 3);
    m_sender.reset();
    EXPECT_FALSE(m_log.running);
}

class FailingSink : public MemoryEngine {
protected:
    Result<void> send(Bytes batch) override {
        if (m_batches == 3) return make_error(ErrorCode::Io, "the peer is gone");
        return MemoryEngine::send(batch);
    }
};
TEST_F(FailingSink, EndsTheRound) {
    for (unsigned threads : {1U, 3U}) {
        m_batches = 0;
        for (uint64_t page = 0; page < 1500; ++page) fill(k_mib + page * k_ram_page, page + 1);
        make_sender({.threads = threads});
        auto round = m_sender->send_round();
        ASSERT_FALSE(round);
        EXPECT_EQ(round.error().message(), "the peer is gone");
    }
}

TEST_F(MemoryEngine, FinishFindsWhatIsMissing) {
    fill(k_mib, 1);
    make_sender();
    auto nothing = m_receiver->finish(m_sender->digest());
    ASSERT_FALSE(nothing);
    EXPECT_EQ(nothing.error().code(), ErrorCode::Integrity);
    ASSERT_TRUE(m_sender->send_round());
    EXPECT_TRUE(m_receiver->finish(m_sender->digest()));
    // A batch that the other side did not send.
    ByteVector batch;
    encode_batch_head(batch, batch_spec::k_zeros, 0, std::array{PageRun{3, 1}});
    ASSERT_TRUE(m_receiver->take(batch));
    auto more = m_receiver->finish(m_sender->digest());
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code(), ErrorCode::Integrity);
}

// A writer at full speed meanwhile, that tells the log after each write as devices do.
TEST_F(MemoryEngine, WritesDuringRounds) {
    make_sender({.compress = true, .threads = 2});
    std::atomic<bool> stop{false};
    std::thread writer([&] {
        std::mt19937_64 random(3);
        while (!stop) {
            uint64_t const at = k_mib + random() % (k_size - 2 * k_mib) / 8 * 8;
            // SAFETY: RAM is page-aligned; written as a device's DMA would, whole words at a time.
            auto* word = reinterpret_cast<uint64_t*>(m_source.span(GuestPhysAddr(at), 8).data());
            __atomic_store_n(word, random() % 4 == 0 ? 0 : random(), __ATOMIC_RELAXED);
            m_source.written(GuestPhysAddr(at), 8);
        }
    });
    for (int round = 0; round < 12; ++round) {
        auto sent = m_sender->send_round();
        EXPECT_TRUE(sent);
    }
    stop = true;
    writer.join();
    EXPECT_TRUE(m_sender->send_rest());
    expect_equal();
    EXPECT_TRUE(m_receiver->finish(m_sender->digest()));
}

} // namespace
} // namespace coffer::vmm::tests
