#include "devices/chipset/uart16550.hpp"

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

struct UartTest : testing::Test {
    FakeByteSink sink;
    FakeIrqSink irqs;
    unsigned rooms = 0;
    devices::Uart16550 uart{"uart.0", sink, devices::IrqLine(irqs, 4), [this] { ++rooms; }};

    bool irq() { return irqs.levels[4]; }
    void open_interrupts(uint8_t ier) {
        out(uart, 4, 0x0B); // DTR, RTS, OUT2
        out(uart, 1, ier);
    }
};

TEST_F(UartTest, SendsBytes) {
    for (char c : std::string("Hi")) out(uart, 0, static_cast<uint8_t>(c));
    ByteVector expected{std::byte{'H'}, std::byte{'i'}};
    EXPECT_EQ(sink.content, expected);
    EXPECT_EQ(in(uart, 5), 0x60);
}

TEST_F(UartTest, DivisorIsApartFromData) {
    out(uart, 3, 0x83);
    out(uart, 0, 0x01);
    out(uart, 1, 0x02);
    EXPECT_EQ(in(uart, 0), 0x01);
    EXPECT_EQ(in(uart, 1), 0x02);
    out(uart, 3, 0x03);
    EXPECT_EQ(in(uart, 1), 0x00);
    EXPECT_TRUE(sink.content.empty());
}

TEST_F(UartTest, ReceiveInterruptByTrigger) {
    open_interrupts(0x01);
    out(uart, 2, 0x81); // FIFO, 8 bytes
    EXPECT_EQ(uart.room(), 16U);
    ByteVector bytes(8, std::byte{'x'});
    uart.receive(Bytes(bytes).first(3));
    EXPECT_TRUE(irq());
    EXPECT_EQ(in(uart, 2), 0xCC); // below the trigger: timeout
    uart.receive(Bytes(bytes).first(5));
    EXPECT_EQ(in(uart, 2), 0xC4);
    for (int i = 0; i < 8; ++i) EXPECT_EQ(in(uart, 0), 'x');
    EXPECT_FALSE(irq());
    EXPECT_EQ(in(uart, 2), 0xC1);
}

TEST_F(UartTest, BackPressureAndOverrun) {
    out(uart, 2, 0x01);
    ByteVector bytes(16, std::byte{'y'});
    uart.receive(bytes);
    EXPECT_EQ(uart.room(), 0U);
    EXPECT_EQ(rooms, 0U);
    in(uart, 0);
    EXPECT_EQ(rooms, 1U);
    in(uart, 0);
    EXPECT_EQ(rooms, 1U);
    uart.receive(bytes);
    EXPECT_EQ(in(uart, 5) & 0x03, 0x03); // data, and some were lost
    EXPECT_EQ(in(uart, 5) & 0x02, 0);
    out(uart, 2, 0x03); // clear
    EXPECT_EQ(uart.room(), 16U);
    EXPECT_EQ(rooms, 2U);
}

TEST_F(UartTest, TransmitterEmptyInterrupt) {
    open_interrupts(0x02);
    EXPECT_TRUE(irq()); // empty when it was enabled
    EXPECT_EQ(in(uart, 2) & 0x0F, 0x02);
    EXPECT_FALSE(irq()); // told
    out(uart, 0, 'a');
    EXPECT_TRUE(irq());
    out(uart, 4, 0x03); // OUT2 off: the PC's gate
    EXPECT_FALSE(irq());
}

TEST_F(UartTest, Loopback) {
    out(uart, 4, 0x1A);                  // loop, RTS, OUT2
    EXPECT_EQ(in(uart, 6) & 0xF0, 0x90); // CTS, DCD
    EXPECT_EQ(uart.room(), 0U);
    out(uart, 0, 0x5A);
    EXPECT_TRUE(sink.content.empty());
    EXPECT_EQ(in(uart, 0), 0x5A);
    out(uart, 4, 0x00);
    EXPECT_EQ(in(uart, 6), 0xB2); // the line's inputs; DSR changed
    EXPECT_EQ(in(uart, 6), 0xB0);
    EXPECT_EQ(rooms, 1U);
}

TEST_F(UartTest, ScratchAndIdentification) {
    out(uart, 7, 0x5A);
    EXPECT_EQ(in(uart, 7), 0x5A);
    EXPECT_EQ(in(uart, 2) & 0xC0, 0x00);
    out(uart, 2, 0x01);
    EXPECT_EQ(in(uart, 2) & 0xC0, 0xC0); // 16550A
}

} // namespace
} // namespace coffer::tests
