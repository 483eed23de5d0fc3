#include <gtest/gtest.h>

#include "base/tagged.hpp"
#include "devices/virtio/virtio_console.hpp"
#include "devices/virtio/virtio_rng.hpp"
#include "tests/support/virtio_rig.hpp"

namespace coffer::tests {
namespace {

using namespace devices;
using namespace devices::virtio;

struct RngTest : ::testing::Test {
    PciRig rig;
    FakeMemory memory{1 << 20};
    ManualScheduler scheduler;
    VirtioRng rng{"virtio-rng.0", memory, scheduler};
    VirtioDriver driver{rig, memory, 6, 0x1'0000};
    void SetUp() override {
        ASSERT_TRUE(rig.host.add(6, 0, rng).has_value());
        driver.probe();
    }
};

TEST_F(RngTest, TransportNegotiatesAndKeepsItsRules) {
    EXPECT_EQ(rig.config_read(6, 0), 0x1044'1AF4U);
    EXPECT_GE(rig.config_read<uint8_t>(6, 8), 1);
    EXPECT_GE(rig.config_read<uint16_t>(6, 0x2E), 0x40);
    EXPECT_EQ(driver.offered(), F_VERSION_1 | F_INDIRECT_DESC);
    EXPECT_EQ(driver.common<uint16_t>(NUM_QUEUES), 1);
    EXPECT_FALSE(driver.negotiate(F_INDIRECT_DESC)) << "without VERSION_1";
    EXPECT_FALSE(driver.negotiate(F_VERSION_1 | 1)) << "a feature that is not offered";
    driver.set_status(15);
    EXPECT_EQ(driver.status() & STATUS_DRIVER_OK, 0);
    ASSERT_TRUE(driver.negotiate(F_VERSION_1));
    driver.set_common<uint32_t>(DRIVER_FEATURE, 0);
    EXPECT_EQ(driver.common<uint32_t>(DRIVER_FEATURE), 1U) << "fixed after FEATURES_OK";

    driver.set_common<uint16_t>(QUEUE_SIZE, 48);
    EXPECT_EQ(driver.common<uint16_t>(QUEUE_SIZE), 64) << "not a power of two";
    driver.set_up_queue(0, 9);
    EXPECT_EQ(driver.common<uint16_t>(QUEUE_MSIX_VECTOR), 0xFFFF) << "no such vector";
    EXPECT_EQ(driver.common<uint64_t>(QUEUE_DRIVER), driver.available(0));
    EXPECT_EQ(driver.common<uint32_t>(QUEUE_DRIVER + 4), 0U);
    driver.set_common<uint64_t>(QUEUE_DESC, 0x5000);
    EXPECT_EQ(driver.common<uint64_t>(QUEUE_DESC), driver.descriptors(0)) << "fixed once enabled";
    driver.set_common<uint16_t>(QUEUE_SELECT, 7);
    EXPECT_EQ(driver.common<uint16_t>(QUEUE_SIZE), 0);
    EXPECT_EQ(driver.common<uint32_t>(QUEUE_SELECT), 0xFFFF'FFFFU) << "registers have one width";
    driver.set_status(0);
    EXPECT_EQ(driver.status(), 0);
    driver.set_common<uint16_t>(QUEUE_SELECT, 0);
    EXPECT_EQ(driver.common<uint16_t>(QUEUE_ENABLE), 0);
}

TEST_F(RngTest, ConfigurationAccessCapabilityReachesTheRegion) {
    unsigned at = driver.capability[5];
    rig.config_write<uint8_t>(6, at + 4, 4);
    rig.config_write<uint32_t>(6, at + 8, DEVICE_STATUS);
    rig.config_write<uint32_t>(6, at + 12, 1);
    rig.config_write<uint32_t>(6, at + 16, 3);
    EXPECT_EQ(driver.status(), 3);
    EXPECT_EQ(rig.config_read(6, at + 16), 3U);
    rig.config_write<uint32_t>(6, at + 8, 0xFFFF'FFFC);
    rig.config_write<uint32_t>(6, at + 12, 4);
    EXPECT_EQ(rig.config_read(6, at + 16), 0U);
    rig.config_write<uint32_t>(6, at + 12, 0x10000);
    rig.config_write<uint32_t>(6, at + 16, 7);
    EXPECT_EQ(driver.status(), 3);
}

TEST_F(RngTest, GivesRandomBytesAndInterrupts) {
    driver.start(F_VERSION_1, 1);
    driver.offer_input(0, 0, 64);
    EXPECT_FALSE(driver.next_used(0));
    driver.notify(0);
    auto element = driver.next_used(0);
    ASSERT_TRUE(element);
    EXPECT_EQ(element->length, 64U);
    std::string text = driver.input_text(0, *element);
    EXPECT_NE(std::count(text.begin(), text.end(), '\0'), 64);
    unsigned gsi = gsi_of(6, 0);
    EXPECT_TRUE(rig.irqs.levels[gsi]);
    EXPECT_EQ(rig.read<uint8_t>(driver.region[3]), 1);
    EXPECT_FALSE(rig.irqs.levels[gsi]);
    EXPECT_EQ(rig.read<uint8_t>(driver.region[3]), 0);

    // The driver asks for none, then by MSI-X.
    uint16_t flags = k_avail_no_interrupt;
    ASSERT_TRUE(memory.write(GuestPhysAddr{driver.available(0)}, object_bytes(flags)));
    driver.offer_input(0, 1, 64);
    driver.notify(0);
    EXPECT_TRUE(driver.next_used(0));
    EXPECT_FALSE(rig.irqs.levels[gsi]);
    rig.enable_msix(6, 2, VirtioDriver::k_msix, 0x60);
    driver.start(F_VERSION_1, 1, true);
    driver.offer_input(0, 0, 64);
    driver.notify(0);
    ASSERT_EQ(rig.msi.messages.size(), 1U);
    EXPECT_EQ(rig.msi.messages[0].second, 0x61U);
    EXPECT_FALSE(rig.irqs.levels[gsi]);
}

TEST_F(RngTest, RateIsBounded) {
    driver.start(F_VERSION_1, 1);
    auto serve_for = [&](Nanoseconds time) {
        uint64_t total = 0;
        for (Nanoseconds passed = 0; passed <= time; passed += 5 * k_ns_per_ms) {
            while (auto element = driver.next_used(0)) total += element->length;
            while (static_cast<uint16_t>(driver.avail_index[0] - driver.used_index[0]) < VirtioDriver::k_size) {
                auto index = static_cast<uint16_t>(driver.avail_index[0] % VirtioDriver::k_size);
                driver.describe(driver.descriptors(0), index, {driver.buffers(0), 0x4000, DESC_WRITE, 0});
                driver.offer(0, index);
            }
            driver.notify(0);
            scheduler.advance(5 * k_ns_per_ms);
        }
        return total;
    };
    uint64_t first = serve_for(0);
    EXPECT_EQ(first, 0U);
    uint64_t in_a_second = serve_for(k_ns_per_s);
    EXPECT_GE(in_a_second, VirtioRng::k_rate / 2);
    EXPECT_LE(in_a_second, VirtioRng::k_rate + VirtioRng::k_burst + 2048);
}

// Rules of descriptor chains (2.7.5): whoever breaks them has broken the device until its reset.
struct ChainTest : RngTest {
    bool broken() { return (driver.status() & STATUS_NEEDS_RESET) != 0; }
    bool try_head(uint16_t head = 0) {
        driver.offer(0, head);
        driver.notify(0);
        return !broken();
    }
    void SetUp() override {
        RngTest::SetUp();
        driver.start(F_VERSION_1 | F_INDIRECT_DESC, 1);
    }
    void put(uint16_t index, Descriptor descriptor) { driver.describe(driver.descriptors(0), index, descriptor); }
    uint64_t table() const { return driver.buffers(0) + 0x1000; }
};

TEST_F(ChainTest, ALongChainAndAnIndirectTableAreTaken) {
    for (uint16_t i = 0; i < 8; ++i)
        put(i, {driver.buffers(0) + i, 1, static_cast<uint16_t>(DESC_WRITE | (i < 7 ? DESC_NEXT : 0)),
                static_cast<uint16_t>(i + 1)});
    EXPECT_TRUE(try_head());
    EXPECT_EQ(driver.next_used(0)->length, 8U);
    for (uint16_t i = 0; i < 8; ++i)
        driver.describe(table(), i,
                        {driver.buffers(0) + i, 2, static_cast<uint16_t>(DESC_WRITE | (i < 7 ? DESC_NEXT : 0)),
                         static_cast<uint16_t>(i + 1)});
    put(0, {table(), 8 * 16, DESC_INDIRECT, 0});
    EXPECT_TRUE(try_head());
    EXPECT_EQ(driver.next_used(0)->length, 16U);
}
TEST_F(ChainTest, ALoopIsRefused) {
    put(0, {driver.buffers(0), 1, DESC_WRITE | DESC_NEXT, 1});
    put(1, {driver.buffers(0), 1, DESC_WRITE | DESC_NEXT, 0});
    EXPECT_FALSE(try_head());
    EXPECT_FALSE(driver.next_used(0));
    // Nothing more is taken until the reset.
    driver.offer_input(0, 2, 8);
    driver.notify(0);
    EXPECT_FALSE(driver.next_used(0));
    driver.start(F_VERSION_1, 1);
    driver.offer_input(0, 2, 8);
    driver.notify(0);
    EXPECT_TRUE(driver.next_used(0));
}
TEST_F(ChainTest, ALoopInAnIndirectTableIsRefused) {
    put(0, {table(), 2 * 16, DESC_INDIRECT, 0});
    driver.describe(table(), 0, {driver.buffers(0), 1, DESC_WRITE | DESC_NEXT, 1});
    driver.describe(table(), 1, {driver.buffers(0), 1, DESC_WRITE | DESC_NEXT, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, ATableInATableIsRefused) {
    put(0, {table(), 2 * 16, DESC_INDIRECT, 0});
    driver.describe(table(), 0, {table(), 16, DESC_INDIRECT, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, AnIndirectDescriptorWithASuccessorIsRefused) {
    put(0, {table(), 16, DESC_INDIRECT | DESC_NEXT, 1});
    driver.describe(table(), 0, {driver.buffers(0), 1, DESC_WRITE, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, OddTablesAreRefused) {
    put(0, {table(), 17, DESC_INDIRECT, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, HugeTablesAreRefused) {
    put(0, {table(), 0xFFFF'FFF0, DESC_INDIRECT, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, ReadableAfterWritableIsRefused) {
    put(0, {driver.buffers(0), 1, DESC_WRITE | DESC_NEXT, 1});
    put(1, {driver.buffers(0), 1, 0, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, HeadsAndSuccessorsPastTheTableAreRefused) {
    EXPECT_FALSE(try_head(8));
}
TEST_F(ChainTest, SuccessorsPastTheTableAreRefused) {
    put(0, {driver.buffers(0), 1, DESC_WRITE | DESC_NEXT, 8});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, BuffersOutsideOfRamAreRefused) {
    put(0, {0xFFFF'FFFF'FFFF'FFF0, 0x100, DESC_WRITE, 0});
    EXPECT_FALSE(try_head());
}
TEST_F(ChainTest, AnIndexTooFarAheadIsRefused) {
    uint16_t index = 9;
    ASSERT_TRUE(memory.write(GuestPhysAddr{driver.available(0) + 2}, object_bytes(index)));
    driver.notify(0);
    EXPECT_TRUE(broken());
}

struct ConsoleTest : ::testing::Test {
    PciRig rig;
    FakeMemory memory{1 << 20};
    ManualScheduler scheduler;
    FakeByteSink sink;
    std::vector<bool> opens;
    unsigned writable = 0;
    VirtioConsole console{{.port_name = "org.coffer.agent.0",
                           .sink = sink,
                           .on_guest_open = [this](bool open) { opens.push_back(open); },
                           .on_writable = [this] { ++writable; }},
                          memory,
                          scheduler};
    VirtioDriver driver{rig, memory, 7, 0x1'0000};
    static constexpr uint64_t k_features = F_VERSION_1 | F_CONSOLE_MULTIPORT | F_INDIRECT_DESC;

    void SetUp() override {
        ASSERT_TRUE(rig.host.add(7, 0, console).has_value());
        driver.probe();
        driver.start(k_features, 6);
    }
    void control(uint32_t id, uint16_t event, uint16_t value) {
        static uint16_t index = 0;
        ConsoleControl message{id, event, value};
        driver.send(3, index++ % 8, object_bytes(message));
        EXPECT_TRUE(driver.next_used(3));
    }
    std::optional<std::pair<ConsoleControl, std::string>> control_in() {
        auto element = driver.next_used(2);
        if (!element) return std::nullopt;
        std::string text = driver.input_text(2, *element);
        EXPECT_GE(text.size(), sizeof(ConsoleControl));
        ConsoleControl message{};
        std::memcpy(&message, text.data(), sizeof message);
        return std::pair{message, text.substr(sizeof message)};
    }
    void open_port() {
        for (uint16_t i = 0; i < 8; ++i) driver.offer_input(2, i, 512);
        control(0xFFFF'FFFF, CONSOLE_DEVICE_READY, 1);
        auto add = control_in();
        ASSERT_TRUE(add);
        EXPECT_EQ(add->first.event, CONSOLE_DEVICE_ADD);
        EXPECT_EQ(add->first.id, 1U);
        EXPECT_FALSE(control_in()) << "port 0 is not announced";
        control(1, CONSOLE_PORT_READY, 1);
        auto name = control_in();
        ASSERT_TRUE(name);
        EXPECT_EQ(name->first.event, CONSOLE_PORT_NAME);
        EXPECT_EQ(name->second, "org.coffer.agent.0");
        auto open = control_in();
        ASSERT_TRUE(open);
        EXPECT_EQ(open->first.event, CONSOLE_PORT_OPEN);
        EXPECT_EQ(open->first.value, 1);
        control(1, CONSOLE_PORT_OPEN, 1);
    }
};

TEST_F(ConsoleTest, HandshakeOpensTheNamedPort) {
    EXPECT_EQ(rig.read<uint32_t>(driver.region[4] + 4), 2U) << "max_nr_ports";
    open_port();
    EXPECT_EQ(opens, std::vector<bool>{true});
    control(1, CONSOLE_PORT_OPEN, 0);
    EXPECT_EQ(opens, (std::vector<bool>{true, false}));
    control(1, CONSOLE_PORT_OPEN, 1);
    driver.set_status(0);
    EXPECT_EQ(opens, (std::vector<bool>{true, false, true, false})) << "a reset closes";
}

TEST_F(ConsoleTest, BytesGoBothWaysWithBackpressure) {
    EXPECT_EQ(console.send(as_bytes("early")), 0U);
    open_port();
    EXPECT_EQ(console.send(as_bytes("hello")), 0U) << "no buffers";
    driver.offer_input(4, 0, 4);
    driver.notify(4);
    EXPECT_EQ(writable, 1U);
    EXPECT_EQ(console.send(as_bytes("hello")), 4U);
    auto element = driver.next_used(4);
    ASSERT_TRUE(element);
    EXPECT_EQ(driver.input_text(4, *element), "hell");

    driver.send(5, 0, as_bytes("to the host"));
    EXPECT_TRUE(driver.next_used(5));
    driver.send(1, 0, as_bytes("port 0"));
    EXPECT_TRUE(driver.next_used(1));
    EXPECT_EQ(std::string(reinterpret_cast<char const*>(sink.content.data()), sink.content.size()), "to the host");
}

TEST_F(ConsoleTest, HostileControlAndDataDoNoHarm) {
    for (uint16_t event = 0; event < 12; ++event)
        for (uint32_t id : {0U, 1U, 2U, 0xFFFF'FFFFU}) control(id, event, 1);
    driver.send(3, 0, as_bytes("abc")); // shorter than a message
    EXPECT_TRUE(driver.next_used(3));
    EXPECT_EQ(driver.status(), 15);
    // More than the driver can be sent without buffers: bounded.
    for (int i = 0; i < 300; ++i) control(1, CONSOLE_PORT_READY, 1);
    auto state = console.save();
    ASSERT_TRUE(state.has_value());
    EXPECT_LT(state->size(), 20'000U);
    // A request of 4 GiB.
    driver.describe(driver.descriptors(5), 0, {0, 0xFFFF'FFFF, 0, 0});
    driver.offer(5, 0);
    driver.notify(5);
    EXPECT_EQ(driver.status() & STATUS_NEEDS_RESET, STATUS_NEEDS_RESET);
    EXPECT_TRUE(sink.content.empty());
}

TEST_F(ConsoleTest, RestoreKeepsThePortOpen) {
    open_port();
    driver.offer_input(4, 0, 16);
    ByteVector state = *console.save();
    console.reset(ResetKind::Cold);
    EXPECT_EQ(opens.back(), false);
    ASSERT_TRUE(console.restore(state).has_value());
    EXPECT_EQ(*console.save(), state);
    EXPECT_EQ(opens.back(), true);
    scheduler.run_tasks();
    EXPECT_EQ(writable, 1U) << "queues are looked at after a restore";
    EXPECT_EQ(console.send(as_bytes("again")), 5U);
    EXPECT_EQ(driver.input_text(4, *driver.next_used(4)), "again");

    VirtioConsoleState forged;
    ASSERT_TRUE(decode_fields(state, forged).has_value());
    forged.virtio.queues[0].size = 3;
    EXPECT_FALSE(console.restore(encode_fields(forged)).has_value());
    ASSERT_TRUE(decode_fields(state, forged).has_value());
    forged.virtio.driver_features |= 1;
    EXPECT_FALSE(console.restore(encode_fields(forged)).has_value());
    ASSERT_TRUE(decode_fields(state, forged).has_value());
    forged.control.assign(65, ByteVector(8));
    EXPECT_FALSE(console.restore(encode_fields(forged)).has_value());
}

} // namespace
} // namespace coffer::tests
