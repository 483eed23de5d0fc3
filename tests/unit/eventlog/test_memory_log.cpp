// Finding an event log in a guest's memory, where a guest can plant what it likes.
#include <sys/mman.h>

#include "tests/unit/eventlog/log_builder.hpp"
#include "vmm/eventlog/memory_log.hpp"

namespace coffer::vmm::tests {
namespace {

class MemoryLog : public testing::Test {
protected:
    void put(size_t at, Bytes bytes) {
        std::copy(bytes.begin(), bytes.end(), m_memory.begin() + static_cast<ptrdiff_t>(at));
    }

    ByteVector pieces() {
        UniqueFd const fd(::memfd_create("pieces", MFD_CLOEXEC));
        auto const half = m_memory.size() / 2;
        std::vector<MemorySpan> const spans{{0, Bytes(m_memory).first(half)}, {half, Bytes(m_memory).subspan(half)}};
        auto const collected = collect_log_pieces(spans, fd.get(), "pieces", [] { return false; });
        EXPECT_TRUE(collected) << collected.error().message();
        auto const size = ::lseek(fd.get(), 0, SEEK_END);
        EXPECT_LE(static_cast<size_t>(size), k_max_pieces_file);
        ByteVector content(static_cast<size_t>(size));
        EXPECT_TRUE(pread_all(fd.get(), content, 0, "pieces"));
        return content;
    }
    static PcrBanks pcrs_after(Bytes log) {
        auto const parsed = parse_event_log(log);
        return replay(*parsed)->banks;
    }
    // The kernel stub's copy: size, a number, version, log.
    static ByteVector stub_copy(Bytes log) {
        ByteVector bytes;
        append(bytes, object_bytes(static_cast<uint32_t>(log.size())));
        append(bytes, object_bytes(uint32_t{0}));
        bytes.push_back(std::byte{2});
        append(bytes, log);
        return bytes;
    }
    static ByteVector final_events(std::vector<ByteVector> const& events) {
        ByteVector bytes;
        append(bytes, object_bytes(uint64_t{1}));
        append(bytes, object_bytes(uint64_t{events.size()}));
        for (auto const& event : events) append(bytes, event);
        return bytes;
    }

    ByteVector m_memory = ByteVector(size_t{4} << 20, std::byte{0xAF});
    ByteVector m_log =
        LogBuilder().event(0, EventType::CrtmVersion, "v").event(4, EventType::EfiAction, "boot").bytes();
};

TEST_F(MemoryLog, TheKernelStubsCopyIsFoundAtAnyAddress) {
    put(12'345, stub_copy(m_log));
    auto const chosen = choose_log(pieces(), pcrs_after(m_log));
    ASSERT_TRUE(chosen) << chosen.error().message();
    EXPECT_EQ(*chosen, m_log) << "and ends where it says that it does";
}

TEST_F(MemoryLog, TheFirmwaresOwnEndsAtZeros) {
    put(0x10'0000, ByteVector(65536));
    put(0x10'0000, m_log);
    auto const chosen = choose_log(pieces(), pcrs_after(m_log));
    ASSERT_TRUE(chosen) << chosen.error().message();
    EXPECT_EQ(*chosen, m_log);
}

TEST_F(MemoryLog, FinalEventsFollowWhereTheyAreMissing) {
    auto const last = LogBuilder::event_bytes(4, EventType::EfiAction, as_bytes("boot"));
    auto const leaving = LogBuilder::event_bytes(5, EventType::EfiAction, as_bytes("Exit Boot Services Invocation"));
    auto whole = m_log;
    append(whole, leaving);
    put(0x2001, stub_copy(m_log));
    put(0x30'0000, final_events({last, leaving}));
    auto const chosen = choose_log(pieces(), pcrs_after(whole));
    ASSERT_TRUE(chosen) << chosen.error().message();
    EXPECT_EQ(*chosen, whole) << "the event that stands in both counts once";
}

TEST_F(MemoryLog, TheOneThatAgreesWithThePcrsIsTaken) {
    auto const other =
        LogBuilder().event(0, EventType::CrtmVersion, "v").event(4, EventType::EfiAction, "planted").bytes();
    put(0x1000, stub_copy(other));
    put(0x9000, stub_copy(m_log));
    put(0x20'1000, stub_copy(other));
    auto const chosen = choose_log(pieces(), pcrs_after(m_log));
    ASSERT_TRUE(chosen);
    EXPECT_EQ(*chosen, m_log);
    auto const replayed = replay(*parse_event_log(other));
    EXPECT_EQ(agreement(*replayed, pcrs_after(m_log)), 2U) << "PCR 0 of both banks";
}

TEST_F(MemoryLog, MemoryFullOfLogsStaysBounded) {
    for (size_t at = 0; at + 64 + m_log.size() < m_memory.size(); at += 512) put(at, stub_copy(m_log));
    for (size_t at = 4096; at + 8192 < m_memory.size(); at += 4096)
        put(at, final_events({LogBuilder::event_bytes(4, EventType::EfiAction, as_bytes("boot"))}));
    auto const found = pieces();
    EXPECT_LE(found.size(), k_max_pieces_file);
    EXPECT_TRUE(choose_log(found, pcrs_after(m_log)));
}

TEST_F(MemoryLog, NoneIsNone) {
    auto const chosen = choose_log(pieces(), {});
    ASSERT_FALSE(chosen);
    EXPECT_EQ(chosen.error().code(), ErrorCode::NotFound);
    for (size_t size : {1U, 23U, 24U, 100U}) EXPECT_FALSE(choose_log(ByteVector(size, std::byte{0xFF}), {})) << size;
}

TEST_F(MemoryLog, ASearchCanBeGivenUp) {
    UniqueFd const fd(::memfd_create("pieces", MFD_CLOEXEC));
    auto const collected = collect_log_pieces({{0, m_memory}}, fd.get(), "pieces", [] { return true; });
    ASSERT_FALSE(collected);
    EXPECT_EQ(collected.error().code(), ErrorCode::Cancelled);
}

} // namespace
} // namespace coffer::vmm::tests
