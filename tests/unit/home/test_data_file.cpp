// Sealing and opening data files in memory that is there already.
#include <gtest/gtest.h>

#include "crypto/random.hpp"
#include "vmm/home/data_file_memory.hpp"

namespace coffer::vmm {
namespace {

constexpr size_t k_unit = home_spec::data::k_unit_size;

class DataFile : public testing::Test {
protected:
    static DataFileHeader header() {
        DataFileHeader header;
        header.name = "nvram";
        header.generation = 1;
        header.epoch = 1;
        header.file = *crypto::random_uuid();
        return header;
    }
    static ByteVector content(size_t size) {
        ByteVector bytes(size);
        EXPECT_TRUE(crypto::random_bytes(bytes));
        return bytes;
    }
    static Result<OpenedDataFile> open(ByteVector file, crypto::DataEncryptionKey const* dek) {
        return open_data_file_in_place(std::move(file), {Uuid(), "nvram"}, dek, "nvram");
    }

    crypto::DataEncryptionKey m_dek = *crypto::DataEncryptionKey::random();
};

TEST_F(DataFile, NothingIsLeftOfWhatTheMemoryHeld) {
    for (auto const* dek : {&m_dek, static_cast<crypto::DataEncryptionKey*>(nullptr)}) {
        ByteVector file;
        for (size_t size : {3 * k_unit, 9 * k_unit + 1, k_unit - 1, size_t{0}, k_unit, size_t{1}}) {
            auto const plain = content(size);
            ASSERT_TRUE(seal_data_file_into(file, header(), dek, plain));
            auto const units = (size + k_unit - 1) / k_unit;
            EXPECT_EQ(file.size(), k_unit + units * (k_unit + 32));
            auto opened = open(file, dek);
            ASSERT_TRUE(opened) << size;
            EXPECT_EQ(opened->content, plain) << size;
        }
    }
}

TEST_F(DataFile, EveryChangedByteIsFoundInPlace) {
    ByteVector file;
    ASSERT_TRUE(seal_data_file_into(file, header(), &m_dek, content(2 * k_unit + 17)));
    for (size_t at = 0; at < file.size(); at += 61) {
        auto changed = file;
        changed[at] ^= std::byte{0x10};
        EXPECT_FALSE(open(std::move(changed), &m_dek)) << at;
    }
    for (size_t size = 0; size < file.size(); size += 509)
        EXPECT_FALSE(open(ByteVector(file.begin(), file.begin() + static_cast<ptrdiff_t>(size)), &m_dek)) << size;
}

} // namespace
} // namespace coffer::vmm
