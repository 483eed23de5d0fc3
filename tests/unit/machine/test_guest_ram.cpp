#include "vmm/memory/guest_ram.hpp"

#include <cstdio>
#include <fstream>
#include <gtest/gtest.h>

#include "vmm/layout.hpp"

namespace coffer::vmm {
namespace {

constexpr uint64_t k_mib = 1U << 20;

TEST(GuestRam, RefusesSizesThatAreNoWholeMebibytes) {
    EXPECT_FALSE(GuestRam::create(0));
    EXPECT_FALSE(GuestRam::create(k_mib + 4096));
}

TEST(GuestRam, LeavesTheVideoHoleOut) {
    auto ram = GuestRam::create(4 * k_mib);
    ASSERT_TRUE(ram);
    std::byte byte{};
    EXPECT_TRUE(ram->read(GuestPhysAddr{0x9FFFF}, {&byte, 1}));
    EXPECT_FALSE(ram->read(GuestPhysAddr{0xA0000}, {&byte, 1}));
    EXPECT_FALSE(ram->read(GuestPhysAddr{0xBFFFF}, {&byte, 1}));
    EXPECT_TRUE(ram->read(GuestPhysAddr{0xC0000}, {&byte, 1}));
    std::array<std::byte, 2> two{};
    EXPECT_FALSE(ram->read(GuestPhysAddr{0x9FFFF}, two));
    EXPECT_FALSE(ram->read(GuestPhysAddr{0xBFFFF}, two));
    size_t total = 0;
    for (auto const& region : ram->regions()) total += region.size;
    EXPECT_EQ(total, 4 * k_mib - layout::k_legacy_video_size);
}

TEST(GuestRam, PutsTheRestAboveFourGib) {
    auto ram = GuestRam::create(layout::k_low_ram_max + 2 * k_mib);
    ASSERT_TRUE(ram);
    EXPECT_EQ(ram->high_size(), 2 * k_mib);
    ASSERT_TRUE(ram->write(GuestPhysAddr{0x1'0000'0000}, as_bytes("high")));
    EXPECT_FALSE(ram->write(GuestPhysAddr{0x1'0000'0000 + 2 * k_mib - 1}, as_bytes("xx")));
    EXPECT_FALSE(ram->write(GuestPhysAddr{layout::k_low_ram_max}, as_bytes("x")));
    EXPECT_FALSE(ram->write(GuestPhysAddr{layout::k_low_ram_max - 1}, as_bytes("xx")));
    EXPECT_FALSE(ram->write(GuestPhysAddr{UINT64_MAX}, as_bytes("xx")));
}

TEST(GuestRam, ReportsWritesAndWipes) {
    auto ram = GuestRam::create(k_mib);
    ASSERT_TRUE(ram);
    uint64_t reported = 0;
    ram->on_write([&](GuestPhysAddr first, size_t size) { reported = first.value() + size; });
    ASSERT_TRUE(ram->write(GuestPhysAddr{0x1000}, as_bytes("secret")));
    EXPECT_EQ(reported, 0x1006U);
    ram->wipe();
    std::array<std::byte, 6> back{std::byte{1}};
    ASSERT_TRUE(ram->read(GuestPhysAddr{0x1000}, back));
    for (std::byte b : back) EXPECT_EQ(b, std::byte{0});
}

// "dd" of VmFlags is "do not include area into core dump" (proc(5), smaps).
TEST(GuestRam, IsLeftOutOfCoreDumps) {
    auto ram = GuestRam::create(4 * k_mib);
    ASSERT_TRUE(ram);
    for (auto const& region : ram->regions()) {
        // SAFETY: the address as a number.
        auto const address = reinterpret_cast<uintptr_t>(region.host);
        std::ifstream smaps("/proc/self/smaps");
        std::string line;
        bool inside = false;
        bool left_out = false;
        while (std::getline(smaps, line)) {
            unsigned long first = 0;
            unsigned long end = 0;
            if (std::sscanf(line.c_str(), "%lx-%lx ", &first, &end) == 2) inside = first <= address && address < end;
            if (inside && line.starts_with("VmFlags:")) left_out = line.find(" dd") != std::string::npos;
        }
        EXPECT_TRUE(left_out);
    }
}

} // namespace
} // namespace coffer::vmm
