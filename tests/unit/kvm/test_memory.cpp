// Memory slots and dirty logs.
#include <gtest/gtest.h>

#include "tests/unit/kvm/micro_guest.hpp"

namespace coffer::tests {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t k_extra = 0x100000;

TEST(KvmMemory, RefusesWhatCannotBeMapped) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram extra(0x4000);
    auto& partition = *guest.partition;
    EXPECT_FALSE(partition.map({GuestPhysAddr(k_extra + 1), 0x1000, extra.data(), false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(k_extra), 0x1001, extra.data(), false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(k_extra), 0, extra.data(), false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(k_extra), 0x1000, nullptr, false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(k_extra), 0x1000, extra.data() + 1, false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(~uint64_t{0xFFF}), 0x2000, extra.data(), false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(0x7F000), 0x2000, extra.data(), false}));  // overlaps RAM's end
    EXPECT_FALSE(partition.map({GuestPhysAddr(0x1000), 0x1000, extra.data(), false}));   // inside RAM
    EXPECT_FALSE(partition.unmap(GuestPhysAddr(k_extra)));
    must(partition.map({GuestPhysAddr(k_extra), 0x2000, extra.data(), false}));
    EXPECT_FALSE(partition.map({GuestPhysAddr(k_extra - 0x1000), 0x2000, extra.data(), false}));
    EXPECT_FALSE(partition.unmap(GuestPhysAddr(k_extra + 0x1000)));
    must(partition.unmap(GuestPhysAddr(k_extra)));
}

TEST(KvmMemory, ARegionGoesAwayUnderARunningGuest) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram extra(0x1000);
    extra.data()[0] = std::byte{0x77};
    must(guest.partition->map({GuestPhysAddr(k_extra), extra.size(), extra.data(), false}));
    guest.io.read_values[k_extra] = 0x11;
    guest.enter(protected_mode, {
        0xE6, 0x81,                                // out 0x81, al
        0x80, 0x3D, 0x00, 0x00, 0x10, 0x00, 0x77,  // again: cmp byte [k_extra], 0x77
        0x74, 0xF7,                                // je again
        0xE6, 0xF4,
    });
    std::thread remover;
    guest.io.on_access = [&](Access const& access) {
        if (access.address == 0x81)
            remover = std::thread([&] {
                std::this_thread::sleep_for(10ms);
                must(guest.partition->unmap(GuestPhysAddr(k_extra)));
            });
        guest.stop_at_end(access);
    };
    guest.run_to_end();
    remover.join();
}

TEST(KvmMemory, FlashChangesModeWithinAnExit) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram flash(0x1000);
    load(flash, 0, {0xAA});
    vmm::MemoryRegion const region{GuestPhysAddr(k_extra), flash.size(), flash.data(), true};
    must(guest.partition->map(region));
    guest.io.read_values[k_extra] = 0x80;  // the status register
    guest.io.on_access = [&](Access const& access) {
        if (access.kind == Access::Kind::MmioWrite && access.value == 0x40)
            must(guest.partition->unmap(GuestPhysAddr(k_extra)));
        if (access.kind == Access::Kind::MmioWrite && access.value == 0xFF) must(guest.partition->map(region));
        guest.stop_at_end(access);
    };
    guest.enter(protected_mode, {
        0xA0, 0x00, 0x00, 0x10, 0x00, 0xE6, 0x80,  // mov al, [k_extra]; out 0x80, al
        0xC6, 0x05, 0x00, 0x00, 0x10, 0x00, 0x40,  // mov byte [k_extra], 0x40: command mode
        0xA0, 0x00, 0x00, 0x10, 0x00, 0xE6, 0x80,
        0xC6, 0x05, 0x00, 0x00, 0x10, 0x00, 0xFF,  // mov byte [k_extra], 0xFF: array mode
        0xA0, 0x00, 0x00, 0x10, 0x00, 0xE6, 0x80,
        0xE6, 0xF4,
    });
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), (std::vector<uint64_t>{0xAA, 0x80, 0xAA}));
}

TEST(KvmMemory, DirtyLogTellsWhatWasWritten) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram extra(0x83000);  // 131 pages: no multiple of 64
    must(guest.partition->map({GuestPhysAddr(k_extra), extra.size(), extra.data(), false}));
    auto* log = guest.partition->dirty_log();
    ASSERT_NE(log, nullptr);
    EXPECT_FALSE(log->harvest(GuestPhysAddr(k_extra)));  // not started
    must(log->start());
    must(log->harvest(GuestPhysAddr(k_extra)));
    Code const code = {
        0xA2, 0x00, 0x20, 0x10, 0x00,  // mov [k_extra + 2 pages], al
        0xA2, 0x00, 0x60, 0x14, 0x00,  // mov [k_extra + 70 pages], al
        0xA2, 0x00, 0x20, 0x18, 0x00,  // mov [k_extra + 130 pages], al
        0xA0, 0x00, 0x50, 0x10, 0x00,  // mov al, [k_extra + 5 pages]
        0xE6, 0xF4,
    };
    guest.enter(protected_mode, code);
    guest.run_to_end();
    std::vector<uint64_t> const written{1u << 2, 1u << 6, 1u << 2};
    EXPECT_EQ(must(log->harvest(GuestPhysAddr(k_extra))), written);
    EXPECT_EQ(must(log->harvest(GuestPhysAddr(k_extra))), (std::vector<uint64_t>{0, 0, 0}));

    guest.enter(protected_mode, code);  // the log was cleared: the same writes are seen again
    guest.run_to_end();
    guest.partition->memory_written(GuestPhysAddr(k_extra + 0x3FFF), 2);  // pages 3 and 4, by a device
    EXPECT_EQ(must(log->harvest(GuestPhysAddr(k_extra))),
              (std::vector<uint64_t>{1u << 2 | 1u << 3 | 1u << 4, 1u << 6, 1u << 2}));
    must(log->stop());
    EXPECT_FALSE(log->harvest(GuestPhysAddr(k_extra)));
    guest.partition->memory_written(GuestPhysAddr(k_extra), 1);
}

TEST(KvmMemory, ManySlotsComeAndGo) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    Ram extra(0x40000);
    for (int round = 0; round < 2; ++round) {
        for (uint64_t page = 0; page < 64; page += 2)
            must(guest.partition->map({GuestPhysAddr(k_extra + page * 0x1000), 0x1000, extra.data() + page * 0x1000,
                                       page % 4 == 0}));
        for (uint64_t page = 0; page < 64; page += 2)
            must(guest.partition->unmap(GuestPhysAddr(k_extra + page * 0x1000)));
    }
}

}  // namespace
}  // namespace coffer::tests
