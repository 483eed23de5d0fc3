// The interrupt controllers wired together: what reaches which CPU, how, and when it may come again.
#include "devices/chipset/interrupt_fabric.hpp"

#include <atomic>
#include <thread>

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

using namespace devices::lapic;

struct RecordingSignals final : devices::CpuSignals {
    void interrupt_raised() noexcept override {
        ++raised;
        raised.notify_all();
    }
    void nmi() noexcept override { ++nmis; }
    void init() noexcept override { ++inits; }
    void startup(uint8_t vector) noexcept override { startup_vector = vector; }
    std::atomic<unsigned> raised{0};
    std::atomic<unsigned> nmis{0};
    std::atomic<unsigned> inits{0};
    std::atomic<int> startup_vector{-1};
};

constexpr uint64_t k_tsc_hz = 2'000'000'000;

struct FabricTest : testing::Test {
    static constexpr unsigned k_cpus = 3;
    ManualScheduler scheduler;
    devices::InterruptFabric fabric{
        k_cpus, scheduler, {k_tsc_hz, [this] { return static_cast<uint64_t>(scheduler.now()) * 2; }}};
    std::array<RecordingSignals, k_cpus> signals;

    void SetUp() override {
        out(fabric.pic().master_ports(), 1, 0xFF); // as an OS that uses the IOAPIC does
        out(fabric.pic().slave_ports(), 1, 0xFF);
        for (unsigned i = 0; i < k_cpus; ++i) {
            cpu(i).connect(signals[i]);
            store(cpu(i), SVR, 0x1FF);
            store(cpu(i), LDR, 0x0100'0000U << i);
        }
    }
    devices::LocalApic& cpu(unsigned i) { return fabric.local_apic(i); }
    void redirect(unsigned pin, uint64_t entry) {
        store(fabric.ioapic(), 0x00, 0x10 + 2 * pin + 1);
        store(fabric.ioapic(), 0x10, static_cast<uint32_t>(entry >> 32));
        store(fabric.ioapic(), 0x00, 0x10 + 2 * pin);
        store(fabric.ioapic(), 0x10, static_cast<uint32_t>(entry));
    }
    uint32_t redirection_low(unsigned pin) {
        store(fabric.ioapic(), 0x00, 0x10 + 2 * pin);
        return load(fabric.ioapic(), 0x10);
    }
    void enter_x2apic(unsigned i) { ASSERT_TRUE(cpu(i).write_apic_base(cpu(i).read_apic_base() | k_base_x2apic)); }
};

TEST_F(FabricTest, EdgeInterruptIsTakenOnce) {
    redirect(4, 0x34);
    fabric.set_line(4, true);
    EXPECT_TRUE(cpu(0).has_pending());
    EXPECT_FALSE(cpu(1).has_pending());
    EXPECT_EQ(signals[0].raised, 1U);
    EXPECT_EQ(cpu(0).acknowledge(), 0x34);
    EXPECT_FALSE(cpu(0).has_pending());
    EXPECT_EQ(cpu(0).acknowledge(), std::nullopt);
    store(cpu(0), EOI, 0);
    EXPECT_FALSE(cpu(0).has_pending()); // an edge: the line may stay up
    fabric.set_line(4, false);
    fabric.set_line(4, true);
    EXPECT_EQ(cpu(0).acknowledge(), 0x34);
}

TEST_F(FabricTest, PitIsPinTwo) {
    redirect(0, 0x30);
    redirect(2, 0x32);
    fabric.set_line(0, true);
    EXPECT_EQ(cpu(0).acknowledge(), 0x32);
    fabric.set_line(2, true);
    EXPECT_EQ(cpu(0).acknowledge(), std::nullopt);
}

TEST_F(FabricTest, LevelInterruptComesAgainAfterEoiWhileAsserted) {
    redirect(20, 0x8051 | 1ULL << 56); // level, CPU 1
    fabric.set_line(20, true);
    EXPECT_EQ(cpu(1).acknowledge(), 0x51);
    EXPECT_TRUE(redirection_low(20) & (1U << 14));
    EXPECT_FALSE(cpu(1).has_pending());
    store(cpu(1), EOI, 0);
    EXPECT_TRUE(cpu(1).has_pending());
    EXPECT_EQ(cpu(1).acknowledge(), 0x51);
    fabric.set_line(20, false);
    store(cpu(1), EOI, 0);
    EXPECT_FALSE(cpu(1).has_pending());
    EXPECT_FALSE(redirection_low(20) & (1U << 14));
}

TEST_F(FabricTest, IoApicEoiRegisterEndsALevelInterrupt) {
    redirect(21, 0x8052);
    fabric.set_line(21, true);
    EXPECT_EQ(cpu(0).acknowledge(), 0x52);
    fabric.set_line(21, false);
    store(fabric.ioapic(), 0x40, 0x52);
    EXPECT_FALSE(redirection_low(21) & (1U << 14));
}

TEST_F(FabricTest, MaskedLevelPinFiresWhenUnmasked) {
    redirect(22, 0x1'8053);
    fabric.set_line(22, true);
    EXPECT_FALSE(cpu(0).has_pending());
    redirect(22, 0x8053);
    EXPECT_TRUE(cpu(0).has_pending());
}

TEST_F(FabricTest, LevelPinWaitsForAnApicThatTakesIt) {
    store(cpu(0), SVR, 0xFF); // software-disabled
    redirect(22, 0x8053);
    fabric.set_line(22, true);
    EXPECT_FALSE(redirection_low(22) & (1U << 14));
    store(cpu(0), SVR, 0x1FF);
    redirect(22, 0x8053);
    EXPECT_EQ(cpu(0).acknowledge(), 0x53);
}

TEST_F(FabricTest, FirmwareSelectsIoApicRegistersByByte) {
    store<uint8_t>(fabric.ioapic(), 0x00, 0x01);
    EXPECT_EQ(load(fabric.ioapic(), 0x10), 0x0017'0020U);
}

TEST_F(FabricTest, LogicalAndLowestPriorityDestinations) {
    redirect(5, 0x0835 | 6ULL << 56); // flat logical, fixed, CPUs 1 and 2
    fabric.set_line(5, true);
    EXPECT_FALSE(cpu(0).has_pending());
    EXPECT_EQ(cpu(1).acknowledge(), 0x35);
    EXPECT_EQ(cpu(2).acknowledge(), 0x35);
    redirect(6, 0x0946 | 7ULL << 56); // lowest priority among all
    store(cpu(0), TPR, 0x40);
    fabric.set_line(6, true);
    EXPECT_FALSE(cpu(0).has_pending());
    EXPECT_FALSE(cpu(1).has_pending() && cpu(2).has_pending());
    // 1 and 2 are both in service at 0x35: the first is as good as the second
    EXPECT_TRUE(cpu(1).has_pending() || cpu(2).has_pending());
    store(cpu(2), DFR, 0x0FFF'FFFF); // cluster 1, member 2
    store(cpu(2), LDR, 0x1200'0000);
    fabric.signal_msi(0xFEE1'2004, 0x61);
    EXPECT_EQ(cpu(2).acknowledge(), 0x61);
}

TEST_F(FabricTest, TaskPriorityHoldsBack) {
    cpu(0).write_cr8(5);
    EXPECT_EQ(load(cpu(0), TPR), 0x50U);
    fabric.signal_msi(0xFEE0'0000, 0x5F);
    EXPECT_FALSE(cpu(0).has_pending());
    cpu(0).write_cr8(4);
    EXPECT_TRUE(cpu(0).has_pending());
    EXPECT_EQ(signals[0].raised, 1U);
    EXPECT_EQ(cpu(0).acknowledge(), 0x5F);
    EXPECT_EQ(load(cpu(0), PPR), 0x50U);
    fabric.signal_msi(0xFEE0'0000, 0x58);
    EXPECT_FALSE(cpu(0).has_pending()); // same class as the one in service
    fabric.signal_msi(0xFEE0'0000, 0x70);
    EXPECT_EQ(cpu(0).acknowledge(), 0x70);
    store(cpu(0), EOI, 0);
    store(cpu(0), EOI, 0);
    EXPECT_EQ(cpu(0).acknowledge(), 0x58);
}

TEST_F(FabricTest, MsiBroadcastAndOutsideTheWindow) {
    fabric.signal_msi(0xFEEF'F000, 0x41);
    for (unsigned i = 0; i < k_cpus; ++i) EXPECT_EQ(cpu(i).acknowledge(), 0x41);
    fabric.signal_msi(0xFED0'0000, 0x42);
    fabric.signal_msi(0x1'FEE0'0000, 0x42);
    for (unsigned i = 0; i < k_cpus; ++i) EXPECT_FALSE(cpu(i).has_pending());
}

TEST_F(FabricTest, PicReachesTheBootCpuOutOfReset) {
    for (auto* unit : fabric.units()) unit->reset(devices::ResetKind::Cold);
    auto& master = fabric.pic().master_ports();
    out(master, 0, 0x11);
    for (auto value : std::to_array<uint8_t>({0x20, 0x04, 0x01, 0x00})) out(master, 1, value);
    fabric.set_line(4, true);
    EXPECT_TRUE(cpu(0).has_pending());
    EXPECT_FALSE(cpu(1).has_pending());
    EXPECT_EQ(cpu(0).acknowledge(), 0x24);
    EXPECT_FALSE(cpu(0).has_pending());
    out(master, 0, 0x20);
    // Masked at LINT0, it waits.
    store(cpu(0), SVR, 0x1FF);
    store(cpu(0), LVT_LINT0, 0x1'0700);
    fabric.set_line(5, true);
    EXPECT_FALSE(cpu(0).has_pending());
    store(cpu(0), LVT_LINT0, 0x700);
    EXPECT_EQ(cpu(0).acknowledge(), 0x25);
}

TEST_F(FabricTest, PicPassesADisabledLocalApic) {
    out(fabric.pic().master_ports(), 1, 0x00);
    ASSERT_TRUE(cpu(0).write_apic_base(k_base_address | k_base_bsp));
    fabric.set_line(1, true);
    EXPECT_TRUE(cpu(0).has_pending());
}

TEST_F(FabricTest, IpisWakeAndStartOtherCpus) {
    store(cpu(0), ICR_HIGH, 1U << 24);
    store(cpu(0), ICR_LOW, 0x4500); // INIT, assert
    EXPECT_EQ(signals[1].inits, 1U);
    EXPECT_EQ(signals[2].inits, 0U);
    EXPECT_EQ(load(cpu(1), SVR), 0xFFU);
    store(cpu(0), ICR_LOW, 0x8500); // INIT level de-assert: nothing
    EXPECT_EQ(signals[1].inits, 1U);
    store(cpu(0), ICR_LOW, 0x4699);
    EXPECT_EQ(signals[1].startup_vector, 0x99);
    store(cpu(0), ICR_LOW, 0xC'4400); // NMI to others
    EXPECT_EQ(signals[0].nmis, 0U);
    EXPECT_EQ(signals[2].nmis, 1U);
    store(cpu(0), ICR_LOW, 0x4'0080); // to self
    EXPECT_EQ(cpu(0).acknowledge(), 0x80);
    store(cpu(0), EOI, 0);
    store(cpu(0), ICR_LOW, 0x8'0081); // to all; CPU 1 is software-disabled after INIT
    EXPECT_EQ(cpu(0).acknowledge(), 0x81);
    EXPECT_EQ(cpu(1).acknowledge(), std::nullopt);
    EXPECT_EQ(cpu(2).acknowledge(), 0x81);
}

TEST_F(FabricTest, IllegalVectorsShowInEsr) {
    store(cpu(0), LVT_ERROR, 0xFE);
    store(cpu(0), ICR_LOW, 0x4'0005);
    EXPECT_EQ(load(cpu(0), ESR), 0U); // not latched yet
    EXPECT_EQ(cpu(0).acknowledge(), 0xFE);
    store(cpu(0), ESR, 0);
    EXPECT_EQ(load(cpu(0), ESR), k_error_send_illegal_vector);
    fabric.signal_msi(0xFEE0'0000, 0x03);
    store(cpu(0), ESR, 0);
    EXPECT_EQ(load(cpu(0), ESR), k_error_receive_illegal_vector);
}

TEST_F(FabricTest, TimerOneShotAndPeriodic) {
    store(cpu(0), DIVIDE_CONFIG, 0xB); // by 1: 1 GHz
    store(cpu(0), LVT_TIMER, 0x40);
    store(cpu(0), INITIAL_COUNT, 1'000'000);
    scheduler.advance(400'000);
    EXPECT_EQ(load(cpu(0), CURRENT_COUNT), 600'000U);
    EXPECT_FALSE(cpu(0).has_pending());
    scheduler.advance(600'000);
    EXPECT_EQ(cpu(0).acknowledge(), 0x40);
    EXPECT_EQ(load(cpu(0), CURRENT_COUNT), 0U);
    store(cpu(0), EOI, 0);
    scheduler.advance(10'000'000);
    EXPECT_FALSE(cpu(0).has_pending());

    store(cpu(0), DIVIDE_CONFIG, 0x3); // by 16
    store(cpu(0), LVT_TIMER, 0x2'0041);
    store(cpu(0), INITIAL_COUNT, 62'500); // 1 ms
    unsigned ticks = 0;
    for (int i = 0; i < 100; ++i) {
        scheduler.advance(k_ns_per_ms / 2);
        if (cpu(0).acknowledge() == 0x41) {
            ++ticks;
            store(cpu(0), EOI, 0);
        }
    }
    EXPECT_EQ(ticks, 50U);
    store(cpu(0), LVT_TIMER, 0x3'0041); // masked
    scheduler.advance(k_ns_per_s);
    EXPECT_FALSE(cpu(0).has_pending());
}

TEST_F(FabricTest, TinyPeriodDoesNotStorm) {
    store(cpu(0), DIVIDE_CONFIG, 0xB);
    store(cpu(0), LVT_TIMER, 0x2'0041);
    store(cpu(0), INITIAL_COUNT, 1);
    scheduler.advance(k_ns_per_s / 10); // would be 10^8 expiries; the interval is bounded
    EXPECT_EQ(cpu(0).acknowledge(), 0x41);
    EXPECT_LE(signals[0].raised, 2'001U);
}

TEST_F(FabricTest, TscDeadline) {
    store(cpu(0), LVT_TIMER, 0x4'0042);
    cpu(0).write_tsc_deadline(static_cast<uint64_t>(scheduler.now()) * 2 + 3'000'000);
    EXPECT_NE(cpu(0).read_tsc_deadline(), 0U);
    scheduler.advance(1'499'000);
    EXPECT_FALSE(cpu(0).has_pending());
    scheduler.advance(2'000);
    EXPECT_EQ(cpu(0).acknowledge(), 0x42);
    EXPECT_EQ(cpu(0).read_tsc_deadline(), 0U);
    store(cpu(0), EOI, 0);
    cpu(0).write_tsc_deadline(1); // long gone
    scheduler.advance(1);
    EXPECT_EQ(cpu(0).acknowledge(), 0x42);
    store(cpu(0), EOI, 0);
    cpu(0).write_tsc_deadline(~uint64_t{0});
    scheduler.advance(4000 * k_ns_per_s);
    EXPECT_FALSE(cpu(0).has_pending());
    store(cpu(0), LVT_TIMER, 0x42); // one-shot: disarmed, and the deadline is not kept
    EXPECT_EQ(cpu(0).read_tsc_deadline(), 0U);
}

TEST_F(FabricTest, X2ApicRegisters) {
    uint64_t value = 0;
    EXPECT_FALSE(cpu(2).read_x2apic(0x802, value)); // not in that mode
    enter_x2apic(2);
    ASSERT_TRUE(cpu(2).read_x2apic(0x802, value));
    EXPECT_EQ(value, 2U);
    ASSERT_TRUE(cpu(2).read_x2apic(0x80D, value));
    EXPECT_EQ(value, 4U);
    EXPECT_FALSE(cpu(2).read_x2apic(0x80E, value));  // DFR
    EXPECT_FALSE(cpu(2).read_x2apic(0x831, value));  // ICR high
    EXPECT_FALSE(cpu(2).write_x2apic(0x80B, 1));     // EOI takes 0 alone
    EXPECT_FALSE(cpu(2).write_x2apic(0x808, 0x100)); // reserved bits
    EXPECT_FALSE(cpu(2).write_x2apic(0x835, 1ULL << 32));
    EXPECT_FALSE(cpu(2).write_x2apic(0x802, 7));
    EXPECT_TRUE(cpu(2).write_x2apic(0x83F, 0x77)); // self IPI
    EXPECT_EQ(cpu(2).acknowledge(), 0x77);
    EXPECT_TRUE(cpu(2).write_x2apic(0x80B, 0));
    EXPECT_TRUE(cpu(2).write_x2apic(0x830, 1ULL << 32 | 0x78));
    EXPECT_EQ(cpu(1).acknowledge(), 0x78);
    std::array<std::byte, 4> bytes;
    EXPECT_NE(cpu(2).mmio_read(ID, bytes), devices::IoStatus::Ok);
}

TEST_F(FabricTest, ApicBaseTransitions) {
    auto& apic = cpu(1);
    uint64_t base = k_base_address;
    EXPECT_FALSE(apic.write_apic_base(base | k_base_x2apic));
    EXPECT_FALSE(apic.write_apic_base(base | k_base_enabled | 1));
    EXPECT_FALSE(apic.write_apic_base(0xFED0'0000 | k_base_enabled));
    EXPECT_TRUE(apic.write_apic_base(base | k_base_enabled | k_base_x2apic));
    EXPECT_FALSE(apic.write_apic_base(base | k_base_enabled)); // back to xAPIC only by off
    EXPECT_TRUE(apic.write_apic_base(base));
    EXPECT_FALSE(apic.write_apic_base(base | k_base_enabled | k_base_x2apic));
    EXPECT_TRUE(apic.write_apic_base(base | k_base_enabled));
    EXPECT_EQ(load(apic, SVR), 0xFFU); // disabling reset it
}

TEST_F(FabricTest, WindowShowsEachCpuItsOwn) {
    unsigned current = 0;
    devices::LocalApicWindow window(fabric, [&] { return current; });
    EXPECT_EQ(load(window, ID), 0U);
    current = 2;
    EXPECT_EQ(load(window, ID), 0x0200'0000U);
}

// For the thread sanitizer, and for lost interrupts: a device thread raises while a vCPU thread sleeps and takes,
// without a common lock; every edge after an EOI arrives, and none leaves the CPU asleep.
TEST_F(FabricTest, ThreadsOfDeviceAndCpu) {
    constexpr unsigned k_rounds = 2'000;
    redirect(4, 0x34);
    std::atomic<unsigned> taken{0};
    std::thread vcpu([&] {
        while (taken < k_rounds) {
            unsigned seen = signals[0].raised;
            if (!cpu(0).has_pending()) {
                signals[0].raised.wait(seen);
                continue;
            }
            if (cpu(0).acknowledge() != 0x34) continue;
            cpu(0).write_cr8(0);
            store(cpu(0), EOI, 0);
            ++taken;
            taken.notify_all();
        }
    });
    for (unsigned i = 0; i < k_rounds; ++i) {
        fabric.set_line(4, true);
        fabric.set_line(4, false);
        taken.wait(i);
    }
    vcpu.join();
    EXPECT_EQ(taken, k_rounds);
    EXPECT_EQ(signals[0].raised, k_rounds);
}

} // namespace
} // namespace coffer::tests
