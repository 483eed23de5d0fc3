#include "vmm/machine/direct_kernel.hpp"

#include <fstream>
#include <gtest/gtest.h>
#include <stdlib.h>

namespace coffer::vmm {
namespace {

class DirectKernelTest : public testing::Test {
protected:
    void SetUp() override {
        char name[] = "/tmp/coffer-test-XXXXXX";
        m_folder = mkdtemp(name);
        m_image.resize(16 * 512, std::byte{0x90});
        m_image[0] = std::byte{'M'};
        m_image[1] = std::byte{'Z'};
        m_image[0x1F1] = std::byte{3};
        store_le<uint16_t>(m_image, 0x1FE, 0xAA55);
        store_le<uint32_t>(m_image, 0x202, 0x53726448);
        store_le<uint16_t>(m_image, 0x206, 0x20F);
    }
    void TearDown() override { std::filesystem::remove_all(m_folder); }

    Result<DirectKernel> load(std::string cmdline = "quiet") {
        auto path = m_folder / "vmlinuz";
        std::ofstream(path).write(reinterpret_cast<char const*>(m_image.data()), // SAFETY: bytes as characters
                                  static_cast<std::streamsize>(m_image.size()));
        return DirectKernel::load(path, {}, std::move(cmdline));
    }

    std::filesystem::path m_folder;
    ByteVector m_image;
};

TEST_F(DirectKernelTest, SplitsSetupFromKernel) {
    auto kernel = load();
    ASSERT_TRUE(kernel) << kernel.error().message();
    EXPECT_EQ(kernel->setup.size(), 4U * 512);
    EXPECT_EQ(kernel->kernel.size(), 12U * 512);
    EXPECT_EQ(kernel->cmdline, "quiet");
}

TEST_F(DirectKernelTest, ZeroSetupSectorsMeanFour) {
    m_image[0x1F1] = std::byte{0};
    EXPECT_EQ(load()->setup.size(), 5U * 512);
}

TEST_F(DirectKernelTest, RefusesWhatIsNoKernel) {
    store_le<uint32_t>(m_image, 0x202, 0);
    auto kernel = load();
    ASSERT_FALSE(kernel);
    EXPECT_EQ(kernel.error().code(), ErrorCode::Corrupt);
    EXPECT_NE(kernel.error().message().find("vmlinuz"), std::string::npos);
}

TEST_F(DirectKernelTest, RefusesKernelsWithoutEfiStubAndCutOnes) {
    m_image[0] = std::byte{0};
    EXPECT_FALSE(load());
    m_image[0] = std::byte{'M'};
    m_image[0x1F1] = std::byte{15};
    EXPECT_FALSE(load());
    m_image.resize(100);
    EXPECT_FALSE(load());
}

TEST_F(DirectKernelTest, RefusesCommandLinesThatDoNotFit) {
    EXPECT_TRUE(load(std::string(2047, 'x')));
    EXPECT_FALSE(load(std::string(2048, 'x')));
    EXPECT_FALSE(load(std::string("a\0b", 3)));
}

} // namespace
} // namespace coffer::vmm
