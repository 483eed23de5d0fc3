// RAM, a dirty log that a test writes by hand, and the engine between two of them.
#pragma once

#include <mutex>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "vmm/layout.hpp"
#include "vmm/migrate/memory_receiver.hpp"
#include "vmm/migrate/memory_sender.hpp"

namespace coffer::vmm::tests {

// Told of writes as a partition is.
class ManualLog final : public DirtyLog {
public:
    explicit ManualLog(GuestRam& ram) : m_ram(ram) {
        ram.on_write([this](GuestPhysAddr first, size_t size) { written(first, size); });
    }
    Result<void> start() override {
        running = true;
        return {};
    }
    Result<void> stop() override {
        running = false;
        return {};
    }
    Result<std::vector<uint64_t>> harvest(GuestPhysAddr gpa) override {
        if (!running) return make_error(ErrorCode::Internal, "the log does not run");
        std::lock_guard lock(m_mutex);
        for (auto const& region : m_ram.regions()) {
            if (region.gpa != gpa) continue;
            std::vector<uint64_t> bits((region.size / k_ram_page + 63) / 64);
            for (uint64_t page = 0; page < region.size / k_ram_page; ++page)
                if (m_pages.erase(gpa.value() / k_ram_page + page)) bits[page / 64] |= uint64_t{1} << page % 64;
            return bits;
        }
        return make_error(ErrorCode::Internal, "no region begins at {:#x}", gpa.value());
    }
    void written(GuestPhysAddr first, size_t size) {
        if (!running || size == 0) return;
        std::lock_guard lock(m_mutex);
        for (uint64_t page = first.value() / k_ram_page; page <= (first.value() + size - 1) / k_ram_page; ++page)
            m_pages.insert(page);
    }

    std::atomic<bool> running{false};

private:
    GuestRam& m_ram;
    std::mutex m_mutex;
    std::set<uint64_t> m_pages;
};

inline GuestRam make_ram(uint64_t size) {
    auto ram = GuestRam::create(size);
    EXPECT_TRUE(ram) << ram.error().message();
    return std::move(*ram);
}

class MemoryEngine : public testing::Test {
protected:
    static constexpr uint64_t k_size = uint64_t{8} << 20;

    void SetUp() override {
        auto made = MemoryReceiver::create(m_target.parts());
        ASSERT_TRUE(made) << made.error().message();
        m_receiver = std::move(*made);
    }
    void make_sender(MemorySender::Options options = {}) {
        auto made = MemorySender::create(
            m_source, m_log, [this](Bytes batch) { return send(batch); }, std::move(options));
        ASSERT_TRUE(made) << made.error().message();
        m_sender = std::move(*made);
    }
    virtual Result<void> send(Bytes batch) {
        EXPECT_LE(batch.size(), k_max_memory_batch);
        ++m_batches;
        return m_receiver->take(batch);
    }
    // A page of noise, or of text that compresses.
    void fill(uint64_t gpa, uint64_t seed, bool compressible = false) {
        std::mt19937_64 random(seed);
        ByteVector content(k_ram_page);
        for (size_t at = 0; at < content.size(); at += 8)
            store_le<uint64_t>(content, at, compressible ? seed : random());
        ASSERT_TRUE(m_source.write(GuestPhysAddr(gpa), content));
    }
    void wipe(uint64_t gpa) { ASSERT_TRUE(m_source.write(GuestPhysAddr(gpa), ByteVector(k_ram_page))); }
    void expect_equal() {
        auto ours = m_source.parts();
        auto theirs = m_target.parts();
        ASSERT_EQ(ours.size(), theirs.size());
        for (size_t part = 0; part < ours.size(); ++part)
            for (size_t at = 0; at < ours[part].size(); at += k_ram_page)
                ASSERT_EQ(std::memcmp(ours[part].data() + at, theirs[part].data() + at, k_ram_page), 0)
                    << "part " << part << ", page " << at / k_ram_page;
    }

    GuestRam m_source = make_ram(k_size);
    GuestRam m_target = make_ram(k_size);
    ManualLog m_log{m_source};
    std::unique_ptr<MemoryReceiver> m_receiver;
    std::unique_ptr<MemorySender> m_sender;
    size_t m_batches = 0;
};

} // namespace coffer::vmm::tests
