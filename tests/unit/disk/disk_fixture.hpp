// Encrypted disks in memory.
#pragma once

#include <gtest/gtest.h>

#include "base/file.hpp"
#include "base/log.hpp"
#include "crypto/random.hpp"
#include "tests/support/temp_folder.hpp"
#include "tests/support/volatile_disk.hpp"
#include "vmm/disk/disk_files.hpp"
#include "vmm/disk/disk_tags.hpp"

namespace coffer::vmm::tests {

using coffer::tests::VolatileDisk;

constexpr uint64_t k_unit = disk_spec::k_unit_size;

inline DiskSecret copy_of(DiskSecret const& secret) {
    return {secret.disk, std::move(*DiskKey::adopt(crypto::SecretBytes::copy_of(secret.key.expose()))), secret.epoch};
}

// An image file's bytes, made by create_disk() in a folder of its own.
struct DiskImage {
    explicit DiskImage(DiskProtection protection, uint64_t size, uint64_t journal = disk_spec::journal::k_min_size) {
        log::set_level(log::Level::Error); // what a disk that was not closed says at its end
        secret = std::make_unique<DiskSecret>(std::move(*DiskSecret::random()));
        expected = {*crypto::random_uuid(), protection};
        coffer::tests::TempFolder folder;
        auto path = folder.path() / "image";
        auto made = create_disk(path, *secret, {expected.vm, protection, size, journal});
        EXPECT_TRUE(made) << made.error().message();
        bytes = *read_file(path, size_t{1} << 30);
        state.current = bytes;
        state.durable = bytes;
    }
    void rewind() { set(bytes); }
    void set(ByteVector content) {
        state = {};
        state.current = content;
        state.durable = std::move(content);
    }
    Result<std::unique_ptr<EncryptedDisk>> open(bool read_only = false, bool lying = false) {
        auto file = std::make_unique<VolatileDisk>(state, read_only);
        if (lying) file->drop_flushes();
        return open_encrypted_disk("image", std::move(file), *secret, expected);
    }

    std::unique_ptr<DiskSecret> secret;
    ExpectedDisk expected;
    ByteVector bytes; // as created
    VolatileDisk::State state;
};

inline ByteVector pattern(uint64_t size, uint64_t seed) {
    std::mt19937_64 random(seed);
    ByteVector bytes(size);
    for (size_t at = 0; at + 8 <= size; at += 8) store_le<uint64_t>(bytes, at, random());
    return bytes;
}

inline ByteVector read_all(EncryptedDisk& disk) {
    ByteVector all(disk.size());
    auto read = disk.read(0, all);
    EXPECT_TRUE(read) << read.error().message();
    return all;
}

} // namespace coffer::vmm::tests
