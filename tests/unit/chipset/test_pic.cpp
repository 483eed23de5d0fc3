#include "devices/chipset/pic.hpp"

#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

using devices::InterruptGuard;

struct PicTest : testing::Test {
    devices::InterruptLock lock;
    bool output = false;
    devices::Pic pic{lock, [this](InterruptGuard const&, bool asserted) { output = asserted; }};

    // As a PC's firmware does it: vectors 0x20 and 0x28.
    void initialise(uint8_t icw4 = 0x01) {
        for (auto* chip : {&pic.master_ports(), &pic.slave_ports()}) {
            bool master = chip == &pic.master_ports();
            out(*chip, 0, 0x11);
            out(*chip, 1, master ? 0x20 : 0x28);
            out(*chip, 1, master ? 0x04 : 0x02);
            out(*chip, 1, icw4);
            out(*chip, 1, 0x00);
        }
    }
    void line(unsigned irq, bool level) {
        InterruptGuard guard(lock);
        pic.set_line(guard, irq, level);
    }
    void pulse(unsigned irq) {
        line(irq, true);
        line(irq, false);
    }
    uint8_t acknowledge() {
        InterruptGuard guard(lock);
        return pic.acknowledge(guard);
    }
};

TEST_F(PicTest, DeliversVectorsOfBothControllers) {
    initialise();
    EXPECT_FALSE(output);
    pulse(4);
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x24);
    EXPECT_FALSE(output);
    out(pic.master_ports(), 0, 0x20);
    pulse(8);
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x28);
    out(pic.master_ports(), 0, 0x0B);
    EXPECT_EQ(in(pic.master_ports(), 0), 0x04); // the cascade is in service
    out(pic.slave_ports(), 0, 0x0B);
    EXPECT_EQ(in(pic.slave_ports(), 0), 0x01);
}

TEST_F(PicTest, PriorityHoldsBackUntilEndOfInterrupt) {
    initialise();
    pulse(3);
    EXPECT_EQ(acknowledge(), 0x23);
    pulse(5);
    EXPECT_FALSE(output); // lower than the one in service
    pulse(1);
    EXPECT_TRUE(output); // higher
    EXPECT_EQ(acknowledge(), 0x21);
    out(pic.master_ports(), 0, 0x20); // ends 1
    EXPECT_FALSE(output);
    out(pic.master_ports(), 0, 0x60 | 3); // specific EOI
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x25);
}

TEST_F(PicTest, MaskedEdgeWaitsAndWithdrawnRequestIsSpurious) {
    initialise();
    out(pic.master_ports(), 1, 0x10);
    pulse(4);
    EXPECT_FALSE(output);
    out(pic.master_ports(), 1, 0x00);
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x24);
    out(pic.master_ports(), 0, 0x20);
    EXPECT_EQ(acknowledge(), 0x27); // nothing there: input 7, not in service
    out(pic.master_ports(), 0, 0x0B);
    EXPECT_EQ(in(pic.master_ports(), 0), 0x00);
}

TEST_F(PicTest, LevelInputAsksWhileAsserted) {
    initialise();
    out(pic.elcr_ports(), 1, 0x08); // IRQ 11
    EXPECT_EQ(in(pic.elcr_ports(), 1), 0x08);
    out(pic.elcr_ports(), 0, 0xFF);
    EXPECT_EQ(in(pic.elcr_ports(), 0), 0xF8); // 0 to 2 cannot be level
    line(11, true);
    EXPECT_EQ(acknowledge(), 0x2B);
    out(pic.slave_ports(), 0, 0x20);
    out(pic.master_ports(), 0, 0x20);
    EXPECT_TRUE(output); // still asserted
    line(11, false);
    EXPECT_FALSE(output);
}

TEST_F(PicTest, SlaveRequestsThatComeDuringServiceAreNotLost) {
    initialise();
    pulse(12);
    EXPECT_EQ(acknowledge(), 0x2C);
    pulse(9); // higher at the slave, held back by the master
    EXPECT_FALSE(output);
    out(pic.slave_ports(), 0, 0x20);
    out(pic.master_ports(), 0, 0x20);
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x29);
}

TEST_F(PicTest, SpecialFullyNestedModeLetsTheSlaveInterruptItself) {
    initialise(0x11);
    pulse(12);
    EXPECT_EQ(acknowledge(), 0x2C);
    pulse(9);
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x29);
}

TEST_F(PicTest, AutomaticEoiAndRotation) {
    initialise(0x03);
    out(pic.master_ports(), 0, 0x80); // rotate on automatic EOI
    pulse(1);
    EXPECT_EQ(acknowledge(), 0x21);
    pulse(1);
    pulse(3);
    EXPECT_EQ(acknowledge(), 0x23); // 1 went to the end of the line
    EXPECT_EQ(acknowledge(), 0x21);
}

TEST_F(PicTest, SpecialMaskModeServesLowerPriorities) {
    initialise();
    pulse(1);
    EXPECT_EQ(acknowledge(), 0x21);
    pulse(6);
    EXPECT_FALSE(output);
    out(pic.master_ports(), 1, 0x02);
    out(pic.master_ports(), 0, 0x68);
    EXPECT_TRUE(output);
    EXPECT_EQ(acknowledge(), 0x26);
}

TEST_F(PicTest, PollCommandAcknowledges) {
    initialise();
    out(pic.master_ports(), 0, 0x0C);
    EXPECT_EQ(in(pic.master_ports(), 0), 0x00);
    pulse(5);
    out(pic.master_ports(), 0, 0x0C);
    EXPECT_EQ(in(pic.master_ports(), 0), 0x85);
    EXPECT_FALSE(output);
}

} // namespace
} // namespace coffer::tests
