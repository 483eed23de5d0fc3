#include "devices/chipset/fw_cfg.hpp"

#include "tests/support/fakes.hpp"
#include "tests/unit/chipset/port_access.hpp"

namespace coffer::tests {
namespace {

using namespace devices::fwcfg;

ByteVector bytes_of(std::string_view text) {
    Bytes bytes = as_bytes(text);
    return ByteVector(bytes.begin(), bytes.end());
}
std::string text_of(Bytes bytes) {
    std::string text;
    for (std::byte b : bytes) text.push_back(static_cast<char>(b));
    return text;
}

struct FwCfgTest : testing::Test {
    static constexpr uint64_t k_descriptor = 0x1000;
    static constexpr uint64_t k_buffer = 0x2000;
    FakeMemory memory{0x10000};
    devices::FwCfg fw_cfg{memory};

    std::string read(uint16_t key, size_t size) {
        out<uint16_t>(fw_cfg.io_ports(), 0, key);
        std::string text;
        for (size_t i = 0; i < size; ++i) text.push_back(static_cast<char>(in(fw_cfg.io_ports(), 1)));
        return text;
    }
    // The control word after the transfer.
    uint32_t dma(uint32_t control, uint32_t length, uint64_t address) {
        MutBytes descriptor = memory.ram().subspan(k_descriptor, 16);
        store_be<uint32_t>(descriptor, 0, control);
        store_be<uint32_t>(descriptor, 4, length);
        store_be<uint64_t>(descriptor, 8, address);
        out<uint32_t>(fw_cfg.dma_ports(), 0, 0);
        out<uint32_t>(fw_cfg.dma_ports(), 4, byte_swap(static_cast<uint32_t>(k_descriptor)));
        return load_be<uint32_t>(descriptor, 0);
    }
    struct Entry {
        uint32_t size;
        uint16_t key;
        std::string name;
    };
    std::vector<Entry> directory() {
        std::string head = read(FILE_DIR, 4);
        auto count = load_be<uint32_t>(as_bytes(head));
        std::string all = read(FILE_DIR, 4 + count * 64);
        std::vector<Entry> entries;
        for (size_t i = 0; i < count; ++i) {
            Bytes entry = as_bytes(all).subspan(4 + i * 64, 64);
            std::string name = text_of(entry.subspan(8));
            entries.push_back({load_be<uint32_t>(entry), load_be<uint16_t>(entry, 4), name.c_str()});
        }
        return entries;
    }
    uint32_t select_of(std::string_view name) {
        for (auto const& entry : directory())
            if (entry.name == name) return uint32_t{entry.key} << 16 | k_dma_select;
        ADD_FAILURE() << name;
        return 0;
    }
};

TEST_F(FwCfgTest, SignatureAndFeatures) {
    EXPECT_EQ(read(SIGNATURE, 6), std::string("QEMU\0\0", 6));
    EXPECT_EQ(read(ID, 4), std::string("\3\0\0\0", 4));
    EXPECT_EQ(byte_swap(in<uint64_t>(fw_cfg.dma_ports(), 0)), k_dma_signature);
    EXPECT_EQ(byte_swap(in<uint32_t>(fw_cfg.dma_ports(), 4)), 0x20434647U);
}

TEST_F(FwCfgTest, DirectoryIsSortedAndComplete) {
    ASSERT_TRUE(fw_cfg.add_file("etc/zeta", bytes_of("zzz")));
    ASSERT_TRUE(fw_cfg.add_file("bootorder", bytes_of("b")));
    ASSERT_TRUE(fw_cfg.add_built_file("etc/alpha", [] { return bytes_of("alpha"); }));
    auto entries = directory();
    ASSERT_EQ(entries.size(), 3U);
    EXPECT_EQ(entries[0].name, "bootorder");
    EXPECT_EQ(entries[1].name, "etc/alpha");
    EXPECT_EQ(entries[1].size, 5U);
    EXPECT_EQ(entries[2].name, "etc/zeta");
    EXPECT_EQ(read(entries[1].key, 7), std::string("alpha\0\0", 7));
    EXPECT_EQ(read(static_cast<uint16_t>(entries[2].key | k_write_channel), 3), "zzz");
    EXPECT_EQ(read(0x3FF, 2), std::string(2, '\0'));
}

TEST_F(FwCfgTest, NamesAreBoundedAndUnique) {
    EXPECT_TRUE(fw_cfg.add_file(std::string(55, 'n'), {}));
    EXPECT_FALSE(fw_cfg.add_file(std::string(56, 'n'), {}));
    EXPECT_FALSE(fw_cfg.add_file("", {}));
    EXPECT_FALSE(fw_cfg.add_file(std::string(55, 'n'), {}));
    EXPECT_EQ(directory().at(0).name, std::string(55, 'n'));
}

TEST_F(FwCfgTest, BuiltItemsFollowTheMachineAtFixedSize) {
    std::string now = "one";
    ASSERT_TRUE(fw_cfg.add_built_file("etc/table", [&] { return bytes_of(now); }));
    auto entry = directory().at(0);
    EXPECT_EQ(entry.size, 3U);
    now = "2";
    EXPECT_EQ(read(entry.key, 4), std::string("2\0\0\0", 4));
    now = "longer";
    EXPECT_EQ(read(entry.key, 3), std::string("2\0\0", 3));
    fw_cfg.reset(devices::ResetKind::Warm);
    EXPECT_EQ(directory().at(0).size, 6U);
}

TEST_F(FwCfgTest, DmaReadsSkipsAndSelects) {
    ASSERT_TRUE(fw_cfg.add_file("etc/data", bytes_of("0123456789")));
    uint32_t select = select_of("etc/data");
    EXPECT_EQ(dma(select | k_dma_skip, 4, 0), 0U);
    std::ranges::fill(memory.ram().subspan(k_buffer, 16), std::byte{0xEE});
    EXPECT_EQ(dma(k_dma_read, 3, k_buffer), 0U);
    EXPECT_EQ(text_of(memory.ram().subspan(k_buffer, 3)), "456");
    EXPECT_EQ(dma(k_dma_read, 8, k_buffer), 0U); // past the end: zeros
    EXPECT_EQ(text_of(memory.ram().subspan(k_buffer, 9)), std::string("789\0\0\0\0\0\xEE", 9));
    EXPECT_EQ(dma(select | k_dma_skip, 0xFFFF'FFFF, 0), 0U);
    EXPECT_EQ(dma(k_dma_skip, 0xFFFF'FFFF, 0), 0U);
    EXPECT_EQ(dma(k_dma_read, 1, k_buffer), 0U);
    EXPECT_EQ(memory.ram()[k_buffer], std::byte{0});
}

TEST_F(FwCfgTest, DmaWritesOnlyWhatIsWritable) {
    std::string seen;
    ASSERT_TRUE(fw_cfg.add_file("etc/fixed", bytes_of("fixed")));
    ASSERT_TRUE(fw_cfg.add_writable_file("etc/address", ByteVector(8), [&](Bytes all) { seen = text_of(all); }));
    std::ranges::copy(as_bytes("ABCDEFGHIJ"), memory.ram().begin() + k_buffer);
    EXPECT_EQ(dma(select_of("etc/fixed") | k_dma_write, 4, k_buffer), k_dma_error);
    uint32_t select = select_of("etc/address");
    EXPECT_EQ(dma(select | k_dma_write, 9, k_buffer), k_dma_error);
    EXPECT_EQ(seen, "");
    EXPECT_EQ(dma(select | k_dma_write, 8, k_buffer), 0U);
    EXPECT_EQ(seen, "ABCDEFGH");
    EXPECT_EQ(dma(k_dma_write, 1, k_buffer), k_dma_error);
    auto state = fw_cfg.save();
    ASSERT_TRUE(state);
    fw_cfg.reset(devices::ResetKind::Cold);
    EXPECT_EQ(text_of(fw_cfg.content("etc/address")), std::string(8, '\0'));
    ASSERT_TRUE(fw_cfg.restore(*state));
    EXPECT_EQ(text_of(fw_cfg.content("etc/address")), "ABCDEFGH");
}

TEST_F(FwCfgTest, HostileDescriptorsAreRefused) {
    ASSERT_TRUE(fw_cfg.add_file("etc/data", bytes_of("0123456789")));
    uint32_t select = select_of("etc/data");
    EXPECT_EQ(dma(select | k_dma_read, 10, 0xFFFF'FFFF'FFFF'FFFA), k_dma_error);
    EXPECT_EQ(dma(select | k_dma_read, 0xFFFF'FFFF, k_buffer), k_dma_error);
    EXPECT_EQ(dma(select | k_dma_read, 10, 0xFFFA), k_dma_error);
    out<uint64_t>(fw_cfg.dma_ports(), 0, byte_swap(uint64_t{0xFFFF'FFFF'FFFF'FFF8})); // no descriptor there
    out<uint32_t>(fw_cfg.dma_ports(), 0, ~0U);
    out<uint32_t>(fw_cfg.dma_ports(), 4, ~0U);
}

TEST_F(FwCfgTest, LinuxBootItems) {
    fw_cfg.set_linux_boot(ByteVector(1536), ByteVector(4000), bytes_of("initrd"), "console=ttyS0");
    EXPECT_EQ(load_le<uint32_t>(as_bytes(read(SETUP_SIZE, 4))), 1536U);
    EXPECT_EQ(load_le<uint32_t>(as_bytes(read(KERNEL_SIZE, 4))), 4000U);
    EXPECT_EQ(load_le<uint32_t>(as_bytes(read(INITRD_SIZE, 4))), 6U);
    EXPECT_EQ(read(INITRD_DATA, 6), "initrd");
    EXPECT_EQ(load_le<uint32_t>(as_bytes(read(CMDLINE_SIZE, 4))), 14U);
    EXPECT_EQ(read(CMDLINE_DATA, 14), std::string("console=ttyS0\0", 14));
}

} // namespace
} // namespace coffer::tests
