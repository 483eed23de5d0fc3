#include <algorithm>
#include <condition_variable>

#include <gtest/gtest.h>

#include "base/tagged.hpp"
#include "tests/support/nvme_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;
using namespace devices::nvme;

constexpr uint64_t k_buffer = 0x40'0000;
constexpr uint64_t k_list = 0x50'0000;

uint16_t code(Status status) {
    return static_cast<uint16_t>(status);
}

struct Nvme : ::testing::Test, NvmeRig {
    void SetUp() override { start(); }
    void with_io() { ASSERT_EQ(create_queues(1), 0); }
    bool disk_equals(uint64_t lba, uint64_t address, size_t size) {
        return std::ranges::equal(ram(address, size), MutBytes(disk.content).subspan(lba * 512, size));
    }
};

TEST_F(Nvme, RegistersSayWhatItIs) {
    EXPECT_EQ(rig.read<uint64_t>(k_bar), k_cap);
    EXPECT_EQ(read32(VS), 0x0001'0400U);
    EXPECT_EQ(rig.config_read(k_slot, 8) >> 8, 0x010802U);
    EXPECT_EQ(rig.read<uint16_t>(k_bar), 0xFFFF) << "accesses are of 4 or 8 bytes";
    EXPECT_EQ(rig.write<uint32_t>(k_bar + VS, 0), IoStatus::Ok);
    EXPECT_EQ(read32(VS), 0x0001'0400U);
    EXPECT_EQ(rig.write<uint32_t>(k_bar + 0x100, 0), IoStatus::NoSuchRegister);
    write32(AQA, 0xFFFF'FFFF);
    EXPECT_EQ(read32(AQA), 0x0FFF'0FFFU);
}

TEST_F(Nvme, EnablingWithSettingsNotOfferedIsFatalUntilReset) {
    write32(CC, 0);
    EXPECT_EQ(csts(), 0U);
    write32(CC, 0x0046'0081); // 8 KiB pages
    EXPECT_EQ(csts(), 2U);
    write32(CC, 0);
    EXPECT_EQ(csts(), 0U);
    write32(AQA, 0);
    write32(CC, 0x0046'0001);
    EXPECT_EQ(csts(), 2U) << "queues of one entry";
}

TEST_F(Nvme, IdentifiesItselfAndItsNamespace) {
    auto identify = command(IDENTIFY, 0, k_buffer);
    identify.cdw10 = IDENTIFY_CONTROLLER;
    ASSERT_EQ(run(0, identify), 0);
    Bytes data = ram(k_buffer, 4096);
    EXPECT_EQ(load_le<uint32_t>(data, IC_VER), k_version);
    EXPECT_EQ(std::to_integer<char>(data[IC_SN]), 'T');
    EXPECT_EQ(std::to_integer<char>(data[IC_SN + 19]), ' ');
    EXPECT_EQ(load_le<uint32_t>(data, IC_NN), 1U);
    EXPECT_EQ(data[IC_SQES], std::byte{0x66});
    EXPECT_EQ(std::to_integer<char>(data[IC_SUBNQN]), 'n');

    identify = command(IDENTIFY, 1, k_buffer);
    ASSERT_EQ(run(0, identify), 0);
    EXPECT_EQ(load_le<uint64_t>(data, IN_NSZE), 8192U);
    EXPECT_EQ(load_le<uint32_t>(data, IN_LBAF0), 9U << 16);
    EXPECT_EQ(data[IN_NGUID], std::byte{1});

    identify.cdw10 = IDENTIFY_NAMESPACE_DESCRIPTORS;
    ASSERT_EQ(run(0, identify), 0);
    EXPECT_EQ(load_le<uint32_t>(data, 0), 0x1002U);
    EXPECT_EQ(data[5], std::byte{2});

    identify.nsid = 0;
    identify.cdw10 = IDENTIFY_ACTIVE_NAMESPACES;
    ASSERT_EQ(run(0, identify), 0);
    EXPECT_EQ(load_le<uint64_t>(data, 0), 1U);
    identify.nsid = 1;
    ASSERT_EQ(run(0, identify), 0);
    EXPECT_EQ(load_le<uint64_t>(data, 0), 0U);

    identify.nsid = 2;
    identify.cdw10 = IDENTIFY_NAMESPACE;
    EXPECT_EQ(run(0, identify), code(Status::InvalidNamespace));
    identify.cdw10 = 0x77;
    EXPECT_EQ(run(0, identify), code(Status::InvalidField));
    identify = command(IDENTIFY, 1, memory.ram().size());
    EXPECT_EQ(run(0, identify), code(Status::DataTransferError));
    identify = command(IDENTIFY, 1, k_buffer + 0x800, k_buffer + 0x2008);
    EXPECT_EQ(run(0, identify), code(Status::PrpOffsetInvalid));
}

TEST_F(Nvme, QueuesAreMadeAndRefused) {
    auto cq = command(CREATE_IO_CQ, 0, cq_base(1));
    cq.cdw11 = 3;
    for (uint32_t id : {0U, 17U, 0xFFFFU}) {
        cq.cdw10 = id | 7U << 16;
        EXPECT_EQ(run(0, cq), code(Status::InvalidQueueId)) << id;
    }
    cq.cdw10 = 1;
    EXPECT_EQ(run(0, cq), code(Status::InvalidQueueSize));
    cq.cdw10 = 1 | 1024U << 16;
    EXPECT_EQ(run(0, cq), code(Status::InvalidQueueSize));
    cq.cdw10 = 1 | 7U << 16;
    cq.cdw11 = 2;
    EXPECT_EQ(run(0, cq), code(Status::InvalidField)) << "not contiguous";
    cq.cdw11 = 3 | 17U << 16;
    EXPECT_EQ(run(0, cq), code(Status::InvalidVector));
    cq.cdw11 = 3;
    cq.prp1 += 8;
    EXPECT_EQ(run(0, cq), code(Status::PrpOffsetInvalid));

    auto sq = command(CREATE_IO_SQ, 0, sq_base(1));
    sq.cdw10 = 1 | 7U << 16;
    sq.cdw11 = 1 | 1U << 16;
    EXPECT_EQ(run(0, sq), code(Status::CqInvalid));
    with_io();
    EXPECT_EQ(run(0, sq), code(Status::InvalidQueueId)) << "taken";

    auto remove = command(DELETE_IO_CQ);
    remove.cdw10 = 1;
    EXPECT_EQ(run(0, remove), code(Status::InvalidQueueDeletion));
    remove.opcode = DELETE_IO_SQ;
    EXPECT_EQ(run(0, remove), 0);
    EXPECT_EQ(run(0, remove), code(Status::InvalidQueueId));
    remove.opcode = DELETE_IO_CQ;
    EXPECT_EQ(run(0, remove), 0);
}

TEST_F(Nvme, ReadsAndWritesThroughEveryShapeOfPrp) {
    with_io();
    EXPECT_EQ(run(1, transfer(READ, 3, 2, k_buffer)), 0);
    EXPECT_TRUE(disk_equals(3, k_buffer, 1024));
    // An offset into the first page, and a second page elsewhere.
    EXPECT_EQ(run(1, transfer(READ, 0, 8, k_buffer + 0x400, k_buffer + 0x8000)), 0);
    EXPECT_TRUE(disk_equals(0, k_buffer + 0x400, 0xC00));
    EXPECT_TRUE(disk_equals(6, k_buffer + 0x8000, 0x400));
    // A list, backwards and so scattered; then in order, which is one piece of memory.
    for (bool backwards : {true, false}) {
        for (uint64_t i = 0; i < 16; ++i)
            store_le<uint64_t>(ram(k_list, 0x1000), i * 8, k_buffer + 0x1000 * (backwards ? 16 - i : i + 1));
        EXPECT_EQ(run(1, transfer(READ, 100, 8 * 17, k_buffer, k_list)), 0);
        for (uint64_t i = 0; i < 16; ++i)
            EXPECT_TRUE(disk_equals(108 + 8 * i, k_buffer + 0x1000 * (backwards ? 16 - i : i + 1), 0x1000));
    }
    // The largest transfer, with a list that ends its page early and chains to another.
    uint64_t entry = k_list + 0x1000 - 16;
    store_le<uint64_t>(ram(entry, 8), 0, k_buffer + 0x1000);
    store_le<uint64_t>(ram(entry + 8, 8), 0, k_list + 0x1000);
    for (uint64_t i = 0; i < 254; ++i)
        store_le<uint64_t>(ram(k_list + 0x1000, 0x1000), i * 8, k_buffer + 0x2000 + 0x1000 * (i % 8));
    EXPECT_EQ(run(1, transfer(READ, 0, 2048, k_buffer, entry)), 0);
    EXPECT_TRUE(disk_equals(0, k_buffer, 0x1000));
    EXPECT_TRUE(disk_equals(8, k_buffer + 0x1000, 0x1000));
    EXPECT_EQ(run(1, transfer(READ, 0, 2049, k_buffer, entry)), code(Status::InvalidField)) << "past MDTS";

    std::ranges::fill(ram(k_buffer, 0x2000), std::byte{0xC3});
    EXPECT_EQ(run(1, transfer(WRITE, 5000, 9, k_buffer, k_buffer + 0x1000)), 0);
    EXPECT_TRUE(disk_equals(5000, k_buffer, 9 * 512));
    EXPECT_EQ(disk.content[5009 * 512 + 1], static_cast<std::byte>((5009 * 7 + (5009 * 512 + 1) % 251) % 256));
}

TEST_F(Nvme, BadCommandsFailAlone) {
    with_io();
    EXPECT_EQ(run(1, transfer(READ, 8192, 1, k_buffer)), code(Status::LbaOutOfRange));
    EXPECT_EQ(run(1, transfer(READ, 8191, 2, k_buffer)), code(Status::LbaOutOfRange));
    EXPECT_EQ(run(1, transfer(READ, ~uint64_t{0}, 2, k_buffer)), code(Status::LbaOutOfRange));
    EXPECT_EQ(run(1, transfer(READ, 0, 1, k_buffer + 1)), code(Status::PrpOffsetInvalid));
    EXPECT_EQ(run(1, transfer(READ, 0, 1, memory.ram().size())), code(Status::DataTransferError));
    EXPECT_EQ(run(1, transfer(WRITE, 0, 1, ~uint64_t{0xFFF})), code(Status::DataTransferError));
    EXPECT_EQ(run(1, transfer(READ, 0, 64, k_buffer, memory.ram().size())), code(Status::DataTransferError));
    EXPECT_EQ(run(1, transfer(READ, 0, 64, k_buffer, k_list + 4)), code(Status::PrpOffsetInvalid));
    auto bad = transfer(READ, 0, 1, k_buffer);
    bad.nsid = 2;
    EXPECT_EQ(run(1, bad), code(Status::InvalidNamespace));
    bad.nsid = 1;
    bad.flags = 0x40;
    EXPECT_EQ(run(1, bad), code(Status::InvalidField)) << "SGL";
    bad.flags = 0;
    bad.opcode = 0x7E;
    EXPECT_EQ(run(1, bad), code(Status::InvalidOpcode));
    EXPECT_EQ(run(1, transfer(READ, 8191, 1, k_buffer)), 0);
    EXPECT_EQ(csts(), 1U);

    // The last error is in the log.
    auto log = command(GET_LOG_PAGE, 0, k_buffer);
    log.cdw10 = LOG_ERROR | 15U << 16;
    ASSERT_EQ(run(0, log), 0);
    EXPECT_EQ(load_le<uint64_t>(ram(k_buffer, 64), 0), 11U);
    EXPECT_EQ(load_le<uint16_t>(ram(k_buffer, 64), 12), code(Status::InvalidOpcode) << 1);
}

TEST_F(Nvme, ACrossingPrpListCannotLoop) {
    with_io();
    // A chain pointer that points to its own page: each pass through it yields 511 pages, and the transfer ends.
    for (uint64_t i = 0; i < 512; ++i) store_le<uint64_t>(ram(k_list, 0x1000), i * 8, k_buffer);
    store_le<uint64_t>(ram(k_list + 0xFF8, 8), 0, k_list);
    EXPECT_EQ(run(1, transfer(READ, 0, 2048, k_buffer, k_list + 0xFF8)), 0);
    // A chain pointer with an offset, which could point to itself for ever.
    store_le<uint64_t>(ram(k_list + 0xFF8, 8), 0, k_list + 0xFF8);
    EXPECT_EQ(run(1, transfer(READ, 0, 2048, k_buffer, k_list + 0xFF8)), code(Status::PrpOffsetInvalid));
}

TEST_F(Nvme, TheWriteCacheIsHonoured) {
    with_io();
    EXPECT_EQ(run(1, transfer(WRITE, 0, 1, k_buffer)), 0);
    EXPECT_EQ(disk.flushes, 0U);
    EXPECT_EQ(run(1, command(FLUSH, 1)), 0);
    EXPECT_EQ(disk.flushes, 1U);
    EXPECT_EQ(run(1, command(FLUSH, 0xFFFF'FFFF)), 0);
    EXPECT_EQ(disk.flushes, 2U);
    EXPECT_EQ(run(1, command(FLUSH, 2)), code(Status::InvalidNamespace));
    auto durable = transfer(WRITE, 0, 1, k_buffer);
    durable.cdw12 |= 1U << 30;
    EXPECT_EQ(run(1, durable), 0);
    EXPECT_EQ(disk.flushes, 3U);
    auto feature = command(SET_FEATURES);
    feature.cdw10 = VOLATILE_WRITE_CACHE;
    EXPECT_EQ(run(0, feature), 0);
    EXPECT_EQ(run(1, transfer(WRITE, 0, 1, k_buffer)), 0);
    EXPECT_EQ(disk.flushes, 4U);
    EXPECT_EQ(run(1, transfer(READ, 0, 1, k_buffer)), 0);
    EXPECT_EQ(disk.flushes, 4U);
    feature.opcode = GET_FEATURES;
    uint32_t value = 1;
    EXPECT_EQ(run(0, feature, &value), 0);
    EXPECT_EQ(value, 0U);
}

TEST_F(Nvme, ZeroesAndDeallocation) {
    with_io();
    EXPECT_EQ(run(1, transfer(WRITE_ZEROES, 16, 4096, 0)), 0);
    EXPECT_TRUE(std::ranges::all_of(MutBytes(disk.content).subspan(16 * 512, 4096 * 512),
                                    [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_NE(disk.content[16 * 512 - 1], std::byte{0});
    EXPECT_NE(disk.content[(16 + 4096) * 512 + 3], std::byte{0});
    EXPECT_EQ(run(1, transfer(WRITE_ZEROES, 8000, 4096, 0)), code(Status::LbaOutOfRange));
    DatasetRange ranges[2] = {{0, 8, 0}, {0, 8, 8192}};
    ASSERT_TRUE(memory.write(GuestPhysAddr{k_buffer}, std::as_bytes(std::span(ranges))));
    auto dsm = command(DATASET_MANAGEMENT, 1, k_buffer);
    dsm.cdw11 = 4;
    EXPECT_EQ(run(1, dsm), 0);
    dsm.cdw10 = 1;
    EXPECT_EQ(run(1, dsm), code(Status::LbaOutOfRange));
}

TEST_F(Nvme, HostErrorsReachTheGuestAsMediaErrors) {
    with_io();
    disk.fail = true;
    EXPECT_EQ(run(1, transfer(READ, 0, 1, k_buffer)), code(Status::UnrecoveredReadError));
    EXPECT_EQ(run(1, transfer(WRITE, 0, 1, k_buffer)), code(Status::WriteFault));
    EXPECT_EQ(run(1, command(FLUSH, 1)), code(Status::WriteFault));
    auto log = command(GET_LOG_PAGE, 0xFFFF'FFFF, k_buffer);
    log.cdw10 = LOG_SMART | 127U << 16;
    ASSERT_EQ(run(0, log), 0);
    EXPECT_EQ(load_le<uint64_t>(ram(k_buffer, 512), 160), 3U);
    disk.fail = false;
    disk.is_read_only = true;
    EXPECT_EQ(run(1, transfer(WRITE, 0, 1, k_buffer)), code(Status::NamespaceWriteProtected));
    EXPECT_EQ(run(1, transfer(READ, 0, 1, k_buffer)), 0);
}

TEST_F(Nvme, LogPagesAreBoundedByTheirSize) {
    auto log = command(GET_LOG_PAGE, 0, k_buffer, k_list);
    std::ranges::fill(ram(k_buffer, 0x1000), std::byte{0xEE});
    log.cdw10 = LOG_FIRMWARE_SLOT | 255U << 16;
    log.cdw12 = 8;
    ASSERT_EQ(run(0, log), 0);
    EXPECT_EQ(std::to_integer<char>(ram(k_buffer, 1)[0]), '0');
    EXPECT_EQ(ram(k_buffer + 504, 1)[0], std::byte{0}) << "past the page: zeroes";
    EXPECT_EQ(ram(k_buffer + 1024, 1)[0], std::byte{0xEE});
    log.cdw12 = 516;
    EXPECT_EQ(run(0, log), code(Status::InvalidField));
    log.cdw12 = 0;
    log.cdw10 = LOG_SMART | 0xFFFF'0000;
    log.cdw11 = 0xFFFF;
    EXPECT_EQ(run(0, log), code(Status::InvalidField)) << "16 GiB of it";
    log.cdw10 = 0x7F;
    log.cdw11 = 0;
    EXPECT_EQ(run(0, log), code(Status::InvalidLogPage));
}

TEST_F(Nvme, FeaturesAnswer) {
    auto feature = command(SET_FEATURES);
    feature.cdw10 = NUMBER_OF_QUEUES;
    feature.cdw11 = 0x0003'0003;
    uint32_t value = 0;
    EXPECT_EQ(run(0, feature, &value), 0);
    EXPECT_EQ(value, 0x000F'000FU);
    feature.cdw11 = 0xFFFF;
    EXPECT_EQ(run(0, feature), code(Status::InvalidField));
    feature.cdw10 = 1U << 31 | ARBITRATION;
    EXPECT_EQ(run(0, feature), code(Status::FeatureNotSaveable));
    feature.cdw10 = 0x7F;
    EXPECT_EQ(run(0, feature), code(Status::InvalidField));
    feature.cdw10 = INTERRUPT_VECTOR_CONFIGURATION;
    feature.cdw11 = 0x1'0003;
    EXPECT_EQ(run(0, feature), 0);
    feature.opcode = GET_FEATURES;
    feature.cdw11 = 3;
    EXPECT_EQ(run(0, feature, &value), 0);
    EXPECT_EQ(value, 0x1'0003U);
    feature.cdw11 = 17;
    EXPECT_EQ(run(0, feature), code(Status::InvalidField));
}

TEST_F(Nvme, InterruptsByMsiXAndByPin) {
    with_io();
    unsigned gsi = gsi_of(k_slot, 0);
    EXPECT_FALSE(rig.irqs.levels[gsi]) << "all completions are consumed";
    put(1, transfer(READ, 0, 1, k_buffer));
    ring(1);
    nvme.drain();
    EXPECT_TRUE(rig.irqs.levels[gsi]);
    write32(INTMS, 2);
    EXPECT_FALSE(rig.irqs.levels[gsi]);
    write32(INTMC, 2);
    EXPECT_TRUE(rig.irqs.levels[gsi]);
    ASSERT_TRUE(poll(1));
    ring_completion(1);
    EXPECT_FALSE(rig.irqs.levels[gsi]);

    rig.enable_msix(k_slot, 17, k_msix_table, 0x50);
    EXPECT_EQ(run(1, transfer(READ, 0, 1, k_buffer)), 0);
    ASSERT_EQ(rig.msi.messages.size(), 1U);
    EXPECT_EQ(rig.msi.messages[0].second, 0x51U);
    EXPECT_FALSE(rig.irqs.levels[gsi]);
}

TEST_F(Nvme, AFullCompletionQueueHoldsBackAndGoesOn) {
    with_io();
    unsigned submitted = 0;
    unsigned completed = 0;
    for (; submitted < 7; ++submitted) put(1, transfer(READ, submitted, 1, k_buffer));
    ring(1);
    nvme.drain();
    for (; submitted < 14; ++submitted) put(1, transfer(READ, submitted, 1, k_buffer));
    ring(1);
    nvme.drain();
    // Seven entries fit; the others wait.
    ByteVector saved = *nvme.save();
    NvmeState state;
    ASSERT_TRUE(decode_fields(saved, state).has_value());
    ASSERT_EQ(state.completion.size(), 2U);
    EXPECT_EQ(state.completion[1].waiting.size(), 7 * sizeof(Completion));
    while (auto completion = wait(1)) {
        EXPECT_EQ(completion->status >> 1, 0);
        if (++completed == 14) break;
    }
    EXPECT_EQ(completed, 14U);
}

TEST_F(Nvme, BadDoorbellsAreReportedAsEventsAndDoNoHarm) {
    with_io();
    auto event = command(ASYNC_EVENT);
    event.id = 0x777;
    put(0, event);
    ring(0);
    EXPECT_FALSE(poll(0));
    write32(DOORBELLS + 8, k_entries); // tail of queue 1 past its end
    auto completion = wait(0);
    ASSERT_TRUE(completion);
    EXPECT_EQ(completion->command_id, 0x777);
    EXPECT_EQ(completion->result, 0x0001'0100U);
    write32(DOORBELLS + 8 * 5, 1); // no such queue
    write32(DOORBELLS + 8 + 4, 3); // consumes what is not there
    put(0, event);
    ring(0);
    scheduler.run_tasks();
    EXPECT_FALSE(poll(0)) << "masked until the log is read";
    auto log = command(GET_LOG_PAGE, 0, k_buffer);
    log.cdw10 = LOG_ERROR | 15U << 16;
    log.id = 0x778;
    put(0, log);
    ring(0);
    auto first = wait(0);
    auto second = wait(0);
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->result | second->result, 0x0001'0000U);
    for (unsigned i = 0; i < 4; ++i) {
        put(0, event);
        ring(0);
        if (i == 0) {
            // The value event that was pending stays masked: the log was not read again.
            scheduler.run_tasks();
            EXPECT_FALSE(poll(0));
        }
    }
    put(0, event);
    ring(0);
    completion = wait(0);
    ASSERT_TRUE(completion);
    EXPECT_EQ(completion->status >> 1 & 0x7FF, code(Status::EventLimitExceeded));
    EXPECT_EQ(run(1, transfer(READ, 0, 1, k_buffer)), 0);
}

TEST_F(Nvme, QueuesOutsideOfRamAreFatal) {
    write32(CC, 0);
    rig.write<uint64_t>(k_bar + ASQ, memory.ram().size());
    write32(CC, 0x0046'0001);
    EXPECT_EQ(csts(), 1U);
    write32(DOORBELLS, 1);
    EXPECT_EQ(csts(), 3U);
    write32(CC, 0);
    EXPECT_EQ(csts(), 0U);
    start();
    EXPECT_EQ(run(0, command(ABORT)), 0);
}

TEST_F(Nvme, ShutdownFlushes) {
    with_io();
    write32(CC, 0x0046'4001);
    nvme.drain();
    EXPECT_EQ(csts() >> 2 & 3, 2U);
    EXPECT_EQ(disk.flushes, 1U);
    write32(CC, 0);
    EXPECT_EQ(csts(), 0U);
    start();
}

TEST_F(Nvme, NothingHappensWithoutBusMastering) {
    with_io();
    rig.config_write<uint16_t>(k_slot, 4, 2);
    put(1, transfer(READ, 0, 1, k_buffer));
    ring(1);
    nvme.drain();
    EXPECT_FALSE(poll(1));
    rig.config_write<uint16_t>(k_slot, 4, 6);
    EXPECT_TRUE(wait(1));
}

// A disk whose reads wait until they are let go.
class GatedDisk final : public BlockBackend {
public:
    uint64_t size() const noexcept override { return 1 << 20; }
    bool read_only() const noexcept override { return false; }
    Result<void> read(uint64_t, MutBytes to) override {
        std::unique_lock lock(m_mutex);
        m_waiting = true;
        m_changed.notify_all();
        m_changed.wait(lock, [this] { return m_open; });
        std::ranges::fill(to, std::byte{0x77});
        return {};
    }
    Result<void> write(uint64_t, Bytes) override { return {}; }
    Result<void> flush() override { return {}; }
    void wait_for_reader() {
        std::unique_lock lock(m_mutex);
        m_changed.wait(lock, [this] { return m_waiting; });
    }
    void open() {
        std::lock_guard lock(m_mutex);
        m_open = true;
        m_changed.notify_all();
    }

private:
    std::mutex m_mutex;
    std::condition_variable m_changed;
    bool m_waiting = false;
    bool m_open = false;
};

TEST_F(Nvme, ResetCompletesOnlyWhenTheDiskIsDoneWithGuestMemory) {
    GatedDisk gated;
    NvmeController slow({.unit = "nvme.1", .serial = "SLOW", .nguid = {std::byte{9}}}, gated, memory, scheduler);
    ASSERT_TRUE(rig.host.add(5, 0, slow).has_value());
    rig.config_write<uint16_t>(k_slot, 4, 0);
    rig.config_write<uint32_t>(5, 0x10, k_bar);
    rig.enable(5);
    start();
    with_io();
    put(1, transfer(READ, 0, 1, k_buffer));
    put(1, transfer(READ, 1, 1, k_buffer + 512));
    ring(1);
    gated.wait_for_reader();
    EXPECT_FALSE(slow.save().has_value()) << "not drained";
    write32(CC, 0);
    scheduler.run_tasks();
    EXPECT_EQ(csts(), 1U) << "the disk still has the guest's buffer";
    gated.open();
    for (int i = 0; i < 50'000 && csts() != 0; ++i) {
        scheduler.run_tasks();
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    EXPECT_EQ(csts(), 0U);
    EXPECT_EQ(ram(k_buffer, 1)[0], std::byte{0x77});
    EXPECT_NE(ram(k_buffer + 512, 1)[0], std::byte{0x77}) << "what had not begun was dropped";
    EXPECT_FALSE(poll(1)) << "no completion after a reset";
    start();
    EXPECT_EQ(run(0, command(ABORT)), 0);
}

TEST_F(Nvme, RestoreGoesOnWhereSaveStopped) {
    with_io();
    rig.config_write<uint16_t>(k_slot, 4, 2); // holds the commands in the queue
    for (uint64_t i = 0; i < 3; ++i) put(1, transfer(READ, 10 + i, 1, k_buffer + 512 * i));
    ring(1);
    rig.config_write<uint16_t>(k_slot, 4, 2);
    nvme.drain();
    ByteVector saved = *nvme.save();
    nvme.reset(ResetKind::Cold);
    EXPECT_EQ(csts(), 0xFFFF'FFFFU) << "BARs are gone with the reset";
    ASSERT_TRUE(nvme.restore(saved).has_value());
    EXPECT_EQ(*nvme.save(), saved);
    rig.enable(k_slot);
    for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(wait(1));
    EXPECT_TRUE(disk_equals(10, k_buffer, 3 * 512));
    EXPECT_EQ(run(0, command(ABORT)), 0);

    NvmeState state;
    auto forged_refused = [&](auto&& change) {
        EXPECT_TRUE(decode_fields(saved, state).has_value());
        change();
        return !nvme.restore(encode_fields(state)).has_value();
    };
    EXPECT_TRUE(forged_refused([&] { state.submission[1].size = 0; }));
    EXPECT_TRUE(forged_refused([&] { state.submission[1].head = 8; }));
    EXPECT_TRUE(forged_refused([&] { state.submission[1].cq = 5; }));
    EXPECT_TRUE(forged_refused([&] { state.submission[1].id = 99; }));
    EXPECT_TRUE(forged_refused([&] { state.submission[1].id = 0; }));
    EXPECT_TRUE(forged_refused([&] { state.completion[1].vector = 17; }));
    EXPECT_TRUE(forged_refused([&] { state.completion[1].waiting.resize(3); }));
    EXPECT_TRUE(forged_refused([&] { state.csts = 0; }));
    EXPECT_TRUE(forged_refused([&] { state.events.resize(5); }));
}

} // namespace
} // namespace coffer::tests
