#include "vmm/machine/flash_saver.hpp"

#include <future>

#include <gtest/gtest.h>

#include "tests/support/fakes.hpp"
#include "vmm/machine/io_loop.hpp"

namespace coffer::vmm {
namespace {

class FlashSaverTest : public testing::Test {
protected:
    void SetUp() override {
        m_loop = std::move(*IoLoop::create());
        m_loop->start();
        m_saver = std::make_unique<FlashSaver>(*m_loop, m_loop->device_lock(), m_store, m_flash);
    }
    void TearDown() override { m_saver.reset(); }
    void change(size_t offset) {
        std::lock_guard lock(m_loop->device_lock());
        m_flash[offset] = std::byte{0x42};
        m_saver->changed();
    }

    ByteVector m_flash = ByteVector(4096);
    tests::FakeNvStore m_store;
    std::unique_ptr<IoLoop> m_loop;
    std::unique_ptr<FlashSaver> m_saver;
};

TEST_F(FlashSaverTest, FlushCommitsWhatChangedAndNothingElse) {
    EXPECT_TRUE(m_saver->flush());
    EXPECT_EQ(m_store.commits, 0U);
    change(7);
    EXPECT_TRUE(m_saver->flush());
    EXPECT_EQ(m_store.commits, 1U);
    EXPECT_EQ(m_store.content, m_flash);
    EXPECT_TRUE(m_saver->flush());
    EXPECT_EQ(m_store.commits, 1U);
}

TEST_F(FlashSaverTest, AFailedCommitIsReportedAndTriedAgain) {
    m_store.fail = true;
    change(1);
    EXPECT_FALSE(m_saver->flush());
    m_store.fail = false;
    EXPECT_TRUE(m_saver->flush());
    EXPECT_EQ(m_store.content, m_flash);
}

class SignallingStore final : public devices::NvStore {
public:
    Result<void> commit(Bytes bytes) override {
        committed.set_value(ByteVector(bytes.begin(), bytes.end()));
        return {};
    }
    std::promise<ByteVector> committed;
};

TEST(FlashSaver, CommitsByItselfWhenTheFlashIsQuiet) {
    auto loop = std::move(*IoLoop::create());
    loop->start();
    ByteVector flash(4096);
    SignallingStore store;
    FlashSaver saver(*loop, loop->device_lock(), store, flash);
    {
        std::lock_guard lock(loop->device_lock());
        flash[9] = std::byte{0x42};
        saver.changed();
    }
    auto committed = store.committed.get_future();
    ASSERT_EQ(committed.wait_for(std::chrono::seconds(20)), std::future_status::ready);
    EXPECT_EQ(committed.get()[9], std::byte{0x42});
}

} // namespace
} // namespace coffer::vmm
