#include "vmm/machine/io_loop.hpp"

#include <future>

#include <gtest/gtest.h>
#include <unistd.h>

namespace coffer::vmm {
namespace {

using namespace std::chrono_literals;

class IoLoopTest : public testing::Test {
protected:
    void SetUp() override {
        auto loop = IoLoop::create();
        ASSERT_TRUE(loop) << loop.error().message();
        m_loop = std::move(*loop);
        m_loop->start();
    }
    std::unique_ptr<IoLoop> m_loop;
};

TEST_F(IoLoopTest, TimersFireInOrderAndUnderTheDeviceLock) {
    std::promise<void> done;
    std::vector<int> order;
    std::unique_lock lock(m_loop->device_lock());
    auto second = m_loop->make_timer([&] {
        order.push_back(2);
        done.set_value();
    });
    auto first = m_loop->make_timer([&] { order.push_back(1); });
    auto never = m_loop->make_timer([&] { order.push_back(3); });
    second->arm(m_loop->now() + 4 * k_ns_per_ms);
    first->arm(m_loop->now() + 2 * k_ns_per_ms);
    never->arm(m_loop->now() + 1 * k_ns_per_ms);
    never->disarm();
    std::this_thread::sleep_for(10ms);
    EXPECT_TRUE(order.empty()); // the device lock is ours
    lock.unlock();
    ASSERT_EQ(done.get_future().wait_for(10s), std::future_status::ready);
    lock.lock();
    EXPECT_EQ(order, (std::vector{1, 2}));
    first.reset();
    second.reset();
    never.reset();
}

TEST_F(IoLoopTest, TasksRunInOrder) {
    std::promise<void> done;
    std::vector<int> order;
    for (int i = 0; i < 100; ++i) m_loop->post([&order, i] { order.push_back(i); });
    m_loop->post([&] { done.set_value(); });
    ASSERT_EQ(done.get_future().wait_for(10s), std::future_status::ready);
    ASSERT_EQ(order.size(), 100U);
    EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST_F(IoLoopTest, AWatchedDescriptorCallsUntilUnwatched) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    UniqueFd reader(ends[0]), writer(ends[1]);
    std::promise<char> got;
    m_loop->watch_readable(reader.get(), [&] {
        char byte = 0;
        ASSERT_EQ(::read(reader.get(), &byte, 1), 1);
        m_loop->unwatch(reader.get());
        got.set_value(byte);
    });
    ASSERT_EQ(::write(writer.get(), "ab", 2), 2);
    auto future = got.get_future();
    ASSERT_EQ(future.wait_for(10s), std::future_status::ready);
    EXPECT_EQ(future.get(), 'a');
    m_loop->stop();
    char left = 0;
    EXPECT_EQ(::read(reader.get(), &left, 1), 1);
    EXPECT_EQ(left, 'b');
}

} // namespace
} // namespace coffer::vmm
