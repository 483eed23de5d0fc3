// Dirty logs of both backends: no page that was written is missing, whoever wrote it and whenever it was harvested.
#include <atomic>
#include <random>
#include <set>
#include <thread>

#include "tests/unit/soft/micro_guest.hpp"

namespace coffer::tests {
namespace {

constexpr uint64_t k_page = 4096;
constexpr uint64_t k_window = 0x40'0000; // where the guest's stores begin
constexpr uint64_t k_all = 0x7F'FFF0;    // more pages than the software TLB has entries
constexpr uint64_t k_hot = 0xF'FFF0;     // pages that stay in it
constexpr uint64_t k_device_window = 0x20'0000, k_device_window_size = 0x20'0000;
constexpr uint64_t k_source = 0x18'0000; // what strings are copied from

// Stores of eight kinds at pseudo-random places. RSI: the generator's state; RBX: the window, R10: offsets in it; R12:
// how many; R9: what strings are copied from.
GUEST_CODE(writer, R"(
    .code64
    1:  mov %rsi, %rax
        shl $13, %rax
        xor %rax, %rsi
        mov %rsi, %rax
        shr $7, %rax
        xor %rax, %rsi
        mov %rsi, %rax
        shl $17, %rax
        xor %rax, %rsi
        mov %rsi, %rdi
        and %r10, %rdi
        add %rbx, %rdi
        mov %rsi, %rcx
        shr $40, %rcx
        and $7, %ecx
        cmp $1, %ecx
        jb 2f
        je 3f
        cmp $3, %ecx
        jb 4f
        je 5f
        cmp $5, %ecx
        jb 6f
        je 7f
        cmp $7, %ecx
        jb 8f
        xchg %rsp, %rdi
        push %rsi
        xchg %rsp, %rdi
        jmp 9f
    2:  mov %rsi, (%rdi)
        jmp 9f
    3:  movb %sil, 15(%rdi)
        jmp 9f
    4:  mov %rsi, %rax
        lock xadd %rax, (%rdi)
        jmp 9f
    5:  mov %rsi, 13(%rdi)
        jmp 9f
    6:  movq %rsi, %xmm0
        movups %xmm0, (%rdi)
        jmp 9f
    7:  mov %esi, %eax
        mov $600, %ecx
        rep stosb
        jmp 9f
    8:  mov %rsi, %r8
        mov %r9, %rsi
        mov $64, %ecx
        rep movsq
        mov %r8, %rsi
    9:  dec %r12
        jnz 1b
        movabs %al, 0x3ffff000
    1:  jmp 1b
)")

GUEST_CODE(halt, R"(
    .code64
    movb $1, 0x400000
    hlt
    1: jmp 1b
)")

// The pages that `count` rounds of the code above store to.
std::set<uint64_t> pages_of_writer(uint64_t seed, uint64_t count, uint64_t mask) {
    struct Extent {
        int64_t first;
        uint64_t size;
    };
    constexpr std::array<Extent, 8> k_kinds{{{0, 8}, {15, 1}, {0, 8}, {13, 8}, {0, 16}, {0, 600}, {0, 512}, {-8, 8}}};
    std::set<uint64_t> pages;
    uint64_t state = seed;
    for (; count > 0; --count) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        auto const& kind = k_kinds[state >> 40 & 7];
        uint64_t const first = k_window + (state & mask) + static_cast<uint64_t>(kind.first);
        for (uint64_t page = first / k_page; page <= (first + kind.size - 1) / k_page; ++page) pages.insert(page);
    }
    return pages;
}

std::set<uint64_t> pages_of(std::vector<uint64_t> const& bits) {
    std::set<uint64_t> pages;
    for (uint64_t page = 0; page < bits.size() * 64; ++page)
        if (bits[page / 64] >> page % 64 & 1) pages.insert(page);
    return pages;
}

struct Backend {
    char const* name;
    MicroGuest::Create create;
    bool user;  // at CPL 3
    bool exact; // nothing but page tables is there beyond what was written
};

class DirtyLogs : public testing::TestWithParam<Backend> {
protected:
    void SetUp() override {
        auto probe = GetParam().create({});
        if (!probe && probe.error().code() == ErrorCode::Unsupported) GTEST_SKIP() << probe.error().message();
        m_guest = std::make_unique<MicroGuest>(size_t{16} << 20, GetParam().create);
        m_guest->long_mode();
        if (GetParam().user) m_guest->user_mode();
        m_log = m_guest->partition->dirty_log();
        ASSERT_NE(m_log, nullptr);
        EXPECT_TRUE(m_guest->partition->capabilities().dirty_log);
    }
    void prepare(uint64_t seed, uint64_t count, uint64_t mask = k_all) {
        m_guest->state.rip = k_guest_code;
        m_guest->state.gpr[6] = seed;
        m_guest->state.gpr[3] = k_window;
        m_guest->state.gpr[12] = count;
        m_guest->state.gpr[9] = k_source;
        m_guest->state.gpr[10] = mask;
    }
    std::set<uint64_t> harvest() {
        auto bits = m_log->harvest(GuestPhysAddr(0));
        EXPECT_TRUE(bits) << bits.error().message();
        return bits ? pages_of(*bits) : std::set<uint64_t>{};
    }
    static bool is_table(uint64_t page) {
        return page >= k_guest_tables / k_page && page < k_guest_tables / k_page + 4;
    }

    // Runs the writer and compares with what it must have written.
    void run_and_compare(uint64_t seed, uint64_t count) {
        prepare(seed, count);
        m_guest->run(writer_code());
        auto const written = pages_of_writer(seed, count, k_all);
        auto const found = harvest();
        for (uint64_t page : written) ASSERT_TRUE(found.contains(page)) << "page " << page << " is missing";
        for (uint64_t page : found) {
            if (!GetParam().exact || is_table(page)) continue;
            ASSERT_TRUE(written.contains(page)) << page << " was not written";
        }
        // At the least it is no log that has everything.
        EXPECT_LT(found.size(), written.size() + 64);
    }

    void follow(uint64_t mask);

    std::unique_ptr<MicroGuest> m_guest;
    DirtyLog* m_log = nullptr;
};

TEST_P(DirtyLogs, HasWhatTheGuestWrote) {
    EXPECT_FALSE(m_log->harvest(GuestPhysAddr(0))); // not started
    prepare(1, 300);
    m_guest->run(writer_code()); // what is cached now must not go past the log
    ASSERT_TRUE(m_log->start());
    harvest();
    run_and_compare(1, 300);
    auto again = harvest();
    EXPECT_TRUE(again.empty()) << again.size() << " pages, of which the first is " << *again.begin();
    // The same pages, which are cached, and others.
    run_and_compare(1, 300);
    run_and_compare(0x1234'5678'9ABC, 500);
    EXPECT_FALSE(m_log->harvest(GuestPhysAddr(k_page))); // no region begins there
    ASSERT_TRUE(m_log->stop());
    EXPECT_FALSE(m_log->harvest(GuestPhysAddr(0)));
    ASSERT_TRUE(m_log->start());
    harvest();
    run_and_compare(2, 300);
    ASSERT_TRUE(m_log->stop());
}

TEST_P(DirtyLogs, HasWhatDevicesWrote) {
    m_guest->partition->memory_written(GuestPhysAddr(0), 1); // the log is off
    ASSERT_TRUE(m_log->start());
    harvest();
    m_guest->partition->memory_written(GuestPhysAddr(63 * k_page + 4095), 2 * k_page);
    m_guest->partition->memory_written(GuestPhysAddr(200 * k_page), 1);
    m_guest->partition->memory_written(GuestPhysAddr(300 * k_page), 0);
    m_guest->partition->memory_written(GuestPhysAddr((size_t{16} << 20) - 1), 1);
    EXPECT_EQ(harvest(), (std::set<uint64_t>{63, 64, 65, 200, 4095}));
    EXPECT_TRUE(harvest().empty());
}

// Bits that the CPU sets in page tables are written memory too.
TEST_P(DirtyLogs, HasAccessedAndDirtyBits) {
    ASSERT_TRUE(m_log->start());
    harvest();
    prepare(1, 20);
    m_guest->run(writer_code());
    auto const found = harvest();
    for (uint64_t table = 0; table < 3; ++table) EXPECT_TRUE(found.contains(k_guest_tables / k_page + table)) << table;
}

// Regions that begin in the middle of 64 pages, and end there.
TEST_P(DirtyLogs, RegionsOfAnyPlace) {
    std::vector<std::byte> storage(200 * k_page);
    auto* host = storage.data() + (k_page - reinterpret_cast<uintptr_t>(storage.data()) % k_page);
    constexpr uint64_t k_at = 0x8000'5000;
    ASSERT_TRUE(m_guest->partition->map({GuestPhysAddr(k_at), 150 * k_page, host, false}));
    ASSERT_TRUE(m_guest->partition->map({GuestPhysAddr(k_at + 150 * k_page), 20 * k_page, host + 150 * k_page, false}));
    ASSERT_TRUE(m_log->start());
    m_guest->partition->memory_written(GuestPhysAddr(k_at), 150 * k_page);
    m_guest->partition->memory_written(GuestPhysAddr(k_at + 169 * k_page), 1);
    auto first = m_log->harvest(GuestPhysAddr(k_at));
    auto second = m_log->harvest(GuestPhysAddr(k_at + 150 * k_page));
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->size(), 3U);
    EXPECT_EQ(pages_of(*first).size(), 150U);
    EXPECT_EQ(pages_of(*second), std::set<uint64_t>{19});
    ASSERT_TRUE(m_guest->partition->unmap(GuestPhysAddr(k_at)));
    EXPECT_FALSE(m_log->harvest(GuestPhysAddr(k_at)));
    ASSERT_TRUE(m_guest->partition->unmap(GuestPhysAddr(k_at + 150 * k_page)));
}

// A copy that follows the log while guest and device write is theirs in the end, byte by byte.
void DirtyLogs::follow(uint64_t mask) {
    auto& guest = *m_guest;
    std::vector<uint64_t> copy(guest.size / 8);
    auto copy_pages = [&](std::set<uint64_t> const& pages) {
        for (uint64_t page : pages)
            for (uint64_t word = page * k_page / 8; word < (page + 1) * k_page / 8; ++word)
                // SAFETY: RAM is page-aligned; read as a device's DMA would.
                copy[word] = __atomic_load_n(reinterpret_cast<uint64_t*>(guest.ram) + word, __ATOMIC_RELAXED);
    };
    prepare(77, 0, mask); // for ever
    guest.put(k_guest_code, writer_code());
    ASSERT_TRUE(guest.vcpu->set_state(guest.state));

    std::atomic<bool> stop{false};
    std::thread vcpu([&] {
        while (!stop) {
            auto exit = guest.vcpu->run();
            ASSERT_TRUE(exit) << exit.error().message();
            ASSERT_EQ(*exit, VcpuExit::Kicked);
        }
    });
    std::thread device([&] {
        std::mt19937_64 random(5);
        while (!stop) {
            uint64_t const word = (k_device_window + random() % k_device_window_size) / 8;
            // SAFETY: as above.
            __atomic_store_n(reinterpret_cast<uint64_t*>(guest.ram) + word, random(), __ATOMIC_RELAXED);
            guest.partition->memory_written(GuestPhysAddr(word * 8), 8);
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_TRUE(m_log->start());
    std::set<uint64_t> all;
    for (uint64_t page = 0; page < guest.size / k_page; ++page) all.insert(page);
    copy_pages(all);
    for (int round = 0; round < 40; ++round) {
        copy_pages(harvest());
        if (round % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        if (round % 20 == 17) guest.vcpu->kick(); // run() ends, and begins again
    }
    stop = true;
    guest.vcpu->kick();
    vcpu.join();
    device.join();
    auto const last = harvest();
    EXPECT_FALSE(last.empty());
    copy_pages(last);
    size_t wrong = 0;
    for (uint64_t page = 0; page < guest.size / k_page; ++page)
        if (std::memcmp(guest.ram + page * k_page, copy.data() + page * k_page / 8, k_page) != 0) {
            ++wrong;
            EXPECT_LT(wrong, 5U) << "page " << page << " differs";
        }
    EXPECT_EQ(wrong, 0U);
}

TEST_P(DirtyLogs, CopiesFollowARunningGuest) {
    follow(k_all);
}
TEST_P(DirtyLogs, CopiesFollowAGuestWithAHotSet) {
    follow(k_hot);
}

// A CPU that waits for an interrupt does not keep the harvest waiting.
TEST_P(DirtyLogs, HarvestsWhileTheCpuIsHalted) {
    if (GetParam().user) GTEST_SKIP() << "HLT is for CPL 0";
    auto& guest = *m_guest;
    guest.put(k_guest_code, halt_code());
    ASSERT_TRUE(guest.vcpu->set_state(guest.state));
    ASSERT_TRUE(m_log->start());
    std::thread vcpu([&] { EXPECT_TRUE(guest.vcpu->run()); });
    std::set<uint64_t> found;
    while (!found.contains(k_window / k_page)) {
        auto now = harvest();
        found.insert(now.begin(), now.end());
    }
    for (int i = 0; i < 100; ++i) harvest();
    guest.vcpu->kick();
    vcpu.join();
}

INSTANTIATE_TEST_SUITE_P(Backends, DirtyLogs,
                         testing::Values(Backend{"soft", create_soft_partition, false, true},
                                         Backend{"soft_user", create_soft_partition, true, true},
                                         Backend{"kvm_user", create_kvm_partition, true, false}),
                         [](auto const& backend) { return std::string(backend.param.name); });

} // namespace
} // namespace coffer::tests
