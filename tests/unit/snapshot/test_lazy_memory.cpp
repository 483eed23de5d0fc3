#include <thread>

#include <fcntl.h>
#include <unistd.h>

#include "tests/unit/snapshot/image_fixture.hpp"
#include "vmm/snapshot/lazy_memory.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr size_t k_size = size_t{32} << 20;

class LazyMemoryTest : public ImageTest {
protected:
    void SetUp() override {
        ImageTest::SetUp();
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        m_home = std::move(*home);
        fill_with_everything(m_source.bytes());
        std::array<Bytes, 2> parts{m_source.bytes().first(k_size / 2), m_source.bytes().last(k_size / 2)};
        write(*m_home, {}, parts);
    }
    std::vector<MutBytes> targets() const {
        return {m_target.bytes().first(k_size / 2), m_target.bytes().last(k_size / 2)};
    }
    Result<std::unique_ptr<LazyMemory>> start(LazyMemory::OnFailure on_failure) {
        return LazyMemory::start(TRY(open_userfaultfd()), TRY(open(*m_home)), targets(), std::move(on_failure));
    }
    static void never(Error const& error) { FAIL() << error.message(); }

    std::unique_ptr<HomeSession> m_home;
    Ram m_source{k_size};
    Ram m_target{k_size};
};

#define SKIP_WITHOUT_USERFAULTFD()                                                                                     \
    do {                                                                                                               \
        if (auto fd = open_userfaultfd(); !fd) GTEST_SKIP() << fd.error().message();                                   \
    } while (false)

TEST_F(LazyMemoryTest, BringsAllInTheBackground) {
    SKIP_WITHOUT_USERFAULTFD();
    auto lazy = start(never);
    ASSERT_TRUE(lazy) << lazy.error().message();
    (*lazy)->finish();
    EXPECT_TRUE(std::ranges::equal(m_target.bytes(), m_source.bytes()));
}

// Readers and writers of several threads, from the far end, and the file no longer in its folder.
TEST_F(LazyMemoryTest, PagesComeWhenTheyAreTouched) {
    SKIP_WITHOUT_USERFAULTFD();
    auto lazy = start(never);
    ASSERT_TRUE(lazy) << lazy.error().message();
    ASSERT_TRUE(m_home->drop_file(k_image_name));
    EXPECT_FALSE(std::filesystem::exists(image_path()));
    std::atomic<unsigned> wrong{0};
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 3; ++t)
        threads.emplace_back([&, t] {
            for (size_t at = k_size - 4096 * (t + 1); at >= 3 * 4096; at -= 3 * 4096) {
                auto page = m_target.bytes().subspan(at, 4096);
                if (!std::ranges::equal(page, m_source.bytes().subspan(at, 4096))) ++wrong;
                page[0] = std::byte{0xEE}; // what the guest writes stays
            }
        });
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0U);
    (*lazy)->finish();
    EXPECT_GT((*lazy)->faults(), 0U);
    for (size_t at = k_size - 4096; at >= 3 * 4096; at -= 4096) EXPECT_EQ(m_target.bytes()[at], std::byte{0xEE});
}

// Who asks for a page just as the last one has come is not left waiting.
TEST_F(LazyMemoryTest, NobodyWaitsWhenAllIsThere) {
    SKIP_WITHOUT_USERFAULTFD();
    constexpr size_t k_small = size_t{1} << 20;
    write(*m_home, {}, std::array<Bytes, 1>{m_source.bytes().first(k_small)});
    for (unsigned turn = 0; turn < 1000; ++turn) {
        Ram memory(k_small);
        auto lazy = LazyMemory::start(*open_userfaultfd(), *open(*m_home), {memory.bytes()}, never);
        ASSERT_TRUE(lazy) << lazy.error().message();
        std::vector<std::thread> threads;
        for (size_t t = 0; t < 2; ++t)
            threads.emplace_back([&, t] {
                for (size_t at = t * 4096; at < k_small; at += 2 * 4096) memory.bytes()[at] = std::byte{1};
            });
        for (auto& thread : threads) thread.join();
        (*lazy)->finish();
    }
}

// The host's kernel touches the page: a disk read into guest memory, a write out of it.
TEST_F(LazyMemoryTest, FaultsOfTheKernelAreServed) {
    SKIP_WITHOUT_USERFAULTFD();
    auto lazy = start(never);
    ASSERT_TRUE(lazy) << lazy.error().message();
    auto path = m_folder.path() / "io";
    auto fd = open_file(path, O_RDWR | O_CREAT);
    ASSERT_TRUE(fd);
    auto from = m_target.bytes().last(65536);
    ASSERT_EQ(::pwrite(fd->get(), from.data(), from.size(), 0), 65536);
    EXPECT_TRUE(std::ranges::equal(content(path), m_source.bytes().last(65536)));
    auto to = m_target.bytes().subspan(k_size - size_t{4} * 65536 + 100, 5000);
    ASSERT_EQ(::pread(fd->get(), to.data(), to.size(), 0), 5000);
    EXPECT_TRUE(std::ranges::equal(to, m_source.bytes().subspan(k_size - 65536, 5000)));
    (*lazy)->finish();
}

// The page that was changed is never seen: whoever asks for it waits until the process is gone.
TEST_F(LazyMemoryTest, TamperedPageEndsTheProcess) {
    SKIP_WITHOUT_USERFAULTFD();
    auto bytes = content(image_path());
    bytes[bytes.size() / 2] ^= std::byte{1};
    put(image_path(), bytes);
    EXPECT_EXIT(
        {
            auto lazy = start([](Error const& error) {
                ::dprintf(STDERR_FILENO, "%s\n", error.message().c_str());
                ::_exit(65);
            });
            unsigned sum = 0;
            for (size_t at = 0; at < k_size; at += 4096) sum += std::to_integer<unsigned>(m_target.bytes()[at]);
            (*lazy)->finish();
            ::_exit(sum != 0 ? 0 : 1);
        },
        testing::ExitedWithCode(65), "fails authentication");
}

TEST_F(LazyMemoryTest, LoadsAtOnce) {
    auto image = open(*m_home);
    ASSERT_TRUE(image);
    for (unsigned threads : {1U, 3U}) {
        Ram target(k_size);
        std::vector<MutBytes> parts{target.bytes().first(k_size / 2), target.bytes().last(k_size / 2)};
        auto loaded = load_memory(**image, parts, {.threads = threads});
        ASSERT_TRUE(loaded) << loaded.error().message();
        EXPECT_TRUE(std::ranges::equal(target.bytes(), m_source.bytes()));
    }
    std::vector<MutBytes> less{m_target.bytes().first(k_size / 2)};
    EXPECT_FALSE(load_memory(**image, less, {}));
}

TEST_F(LazyMemoryTest, LoadingAtOnceFindsATamperedPage) {
    auto bytes = content(image_path());
    bytes[bytes.size() / 2] ^= std::byte{1};
    put(image_path(), bytes);
    auto image = open(*m_home);
    ASSERT_TRUE(image);
    auto loaded = load_memory(**image, targets(), {.threads = 2});
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code(), ErrorCode::Integrity);
}

// Ended with pages still absent: nothing waits, nothing leaks.
TEST_F(LazyMemoryTest, CanBeEndedEarly) {
    SKIP_WITHOUT_USERFAULTFD();
    for (int i = 0; i < 20; ++i) {
        Ram target(k_size);
        auto image = open(*m_home);
        auto fd = open_userfaultfd();
        ASSERT_TRUE(image && fd);
        auto lazy = LazyMemory::start(std::move(*fd), std::move(*image), {target.bytes()}, never);
        ASSERT_TRUE(lazy) << lazy.error().message();
        lazy->reset();
    }
}

} // namespace
} // namespace coffer::vmm::tests
