// What encrypted disks hold, and what of a changed image they refuse.
#include <atomic>
#include <thread>

#include "tests/unit/disk/disk_fixture.hpp"

#include "devices/storage/raw_disk.hpp"

namespace coffer::vmm::tests {
namespace {

class EncryptedDisks : public testing::TestWithParam<DiskProtection> {};
INSTANTIATE_TEST_SUITE_P(Kinds, EncryptedDisks,
                         testing::Values(DiskProtection::Unauthenticated, DiskProtection::Authenticated),
                         [](auto const& kind) { return std::string(to_string(kind.param)); });

// Random reads, writes, zeroings and deallocations at sector granularity against a plain array, with the image closed
// and opened again in between. The size is no multiple of a unit, and the journal is small.
TEST_P(EncryptedDisks, AreDisks) {
    constexpr uint64_t k_size = 700 * 1024 + 512;
    DiskImage image(GetParam(), k_size);
    ByteVector model(k_size);
    std::mt19937 random(7);
    for (int session = 0; session < 4; ++session) {
        auto opened = image.open();
        ASSERT_TRUE(opened) << opened.error().message();
        auto& disk = **opened;
        ASSERT_EQ(disk.size(), k_size);
        ASSERT_EQ(read_all(disk), model);
        for (int step = 0; step < 1500; ++step) {
            uint64_t const sectors = k_size / 512;
            uint64_t const first = random() % sectors;
            uint64_t const most = std::min<uint64_t>(sectors - first, step % 50 == 0 ? 1400 : 40);
            uint64_t const count = 1 + random() % most;
            auto const at = model.begin() + static_cast<std::ptrdiff_t>(first * 512);
            auto const bytes = static_cast<std::ptrdiff_t>(count * 512);
            switch (random() % 8) {
            case 0: {
                ASSERT_TRUE(disk.write_zeroes(first * 512, count * 512));
                std::fill_n(at, bytes, std::byte{0});
                break;
            }
            case 1: {
                ASSERT_TRUE(disk.discard(first * 512, count * 512));
                // As before or zeros, by sectors, and so from now on.
                ByteVector now(count * 512);
                ASSERT_TRUE(disk.read(first * 512, now));
                for (uint64_t s = 0; s < count; ++s) {
                    auto sector = Bytes(now).subspan(s * 512, 512);
                    auto old = Bytes(model).subspan((first + s) * 512, 512);
                    ASSERT_TRUE(all_zero(sector) || std::ranges::equal(sector, old));
                }
                std::ranges::copy(now, at);
                break;
            }
            case 2: ASSERT_TRUE(disk.flush()); break;
            case 3:
            case 4:
            case 5: {
                auto content = pattern(count * 512, random());
                ASSERT_TRUE(disk.write(first * 512, content));
                std::ranges::copy(content, at);
                break;
            }
            default: {
                ByteVector now(count * 512);
                ASSERT_TRUE(disk.read(first * 512, now));
                ASSERT_TRUE(std::equal(now.begin(), now.end(), at)) << "sector " << first;
            }
            }
        }
        ASSERT_EQ(read_all(disk), model);
        ASSERT_TRUE(disk.close());
        ASSERT_EQ(read_all(disk), model);
    }
}

TEST_P(EncryptedDisks, HoldNoPlaintext) {
    DiskImage image(GetParam(), 1 << 20);
    auto disk = *image.open();
    std::string text;
    while (text.size() < 65536) text += "a text that is easily known again. ";
    ASSERT_TRUE(disk->write(8192, as_bytes(text).first(65536)));
    ASSERT_TRUE(disk->flush());
    auto holds_text = [&] {
        auto needle = as_bytes("easily known again");
        return !std::ranges::search(image.state.current, needle).empty();
    };
    EXPECT_FALSE(holds_text());
    ASSERT_TRUE(disk->close());
    EXPECT_FALSE(holds_text());
}

// The same content in two places, and on two disks, does not look the same.
TEST_P(EncryptedDisks, SameContentLooksDifferent) {
    DiskImage image(GetParam(), 1 << 20);
    DiskImage other(GetParam(), 1 << 20);
    auto content = pattern(k_unit, 1);
    for (auto* one : {&image, &other}) {
        auto disk = *one->open();
        ASSERT_TRUE(disk->write(0, content));
        ASSERT_TRUE(disk->write(k_unit, content));
        ASSERT_TRUE(disk->close());
    }
    auto layout = (*image.open())->header().layout;
    auto unit = [&](DiskImage& from, uint64_t number) {
        return ByteVector(from.state.current.begin() + static_cast<std::ptrdiff_t>(layout.data_at() + number * k_unit),
                          from.state.current.begin() +
                              static_cast<std::ptrdiff_t>(layout.data_at() + (number + 1) * k_unit));
    };
    EXPECT_NE(unit(image, 0), content);
    EXPECT_NE(unit(image, 0), unit(image, 1));
    EXPECT_NE(unit(image, 0), unit(other, 0));
}

TEST_P(EncryptedDisks, AreRefusedUnderAnotherKeyVmOrKind) {
    DiskImage image(GetParam(), 1 << 20);
    DiskImage other(GetParam(), 1 << 20);
    auto refused = [&] {
        auto disk = image.open();
        EXPECT_FALSE(disk);
        return !disk && disk.error().code() == ErrorCode::Integrity;
    };
    ASSERT_TRUE(image.open());
    std::swap(image.secret, other.secret);
    EXPECT_TRUE(refused());
    std::swap(image.secret, other.secret);
    std::swap(image.expected.vm, other.expected.vm);
    EXPECT_TRUE(refused());
    std::swap(image.expected.vm, other.expected.vm);
    auto const kind = image.expected.protection;
    image.expected.protection =
        kind == DiskProtection::Authenticated ? DiskProtection::Unauthenticated : DiskProtection::Authenticated;
    EXPECT_TRUE(refused());
    image.expected.protection = kind;
    image.state.current.pop_back();
    EXPECT_TRUE(refused());
    image.state.current.resize(image.state.current.size() + 513);
    EXPECT_TRUE(refused());
    image.state.current.resize(1000);
    EXPECT_TRUE(refused());
}

// Each bit of the header that counts: the only one of an unauthenticated disk, the newest of an authenticated one,
// whose older one is refused by the epoch that the home knows.
TEST_P(EncryptedDisks, ChangedHeadersAreRefused) {
    DiskImage image(GetParam(), 1 << 20);
    {
        auto disk = *image.open();
        ASSERT_TRUE(disk->close());
        image.secret->epoch = disk->header().epoch;
    }
    auto const whole = image.state.current;
    uint64_t const slot = GetParam() == DiskProtection::Authenticated ? image.secret->epoch % 2 : 0;
    for (size_t at = 0; at < disk_spec::k_header_size; ++at) {
        if (at >= 160 && at < 4064 && at % 97 != 0) continue;
        auto changed = whole;
        changed[slot * disk_spec::k_header_size + at] ^= static_cast<std::byte>(1U << (at % 8));
        image.set(std::move(changed));
        auto disk = image.open();
        ASSERT_FALSE(disk) << at;
        EXPECT_EQ(disk.error().code(), ErrorCode::Integrity);
        EXPECT_NE(disk.error().message().find("image"), std::string::npos);
    }
    image.set(whole);
    EXPECT_TRUE(image.open());
}

struct Written {
    DiskImage image{DiskProtection::Authenticated, 4 << 20};
    ByteVector content = pattern(4 << 20, 3);
    disk_spec::Layout layout;

    Written() {
        auto disk = *image.open();
        // A unit is left unwritten.
        EXPECT_TRUE(disk->write(0, Bytes(content).first(content.size() - k_unit)));
        std::fill(content.end() - k_unit, content.end(), std::byte{0});
        EXPECT_TRUE(disk->close());
        layout = disk->header().layout;
        image.secret->epoch = disk->header().epoch;
        image.bytes = image.state.current;
        disk.reset();
        image.rewind();
    }
    // Of each unit, whether reading it is refused; the others read as written.
    std::vector<bool> refusals() {
        auto disk = image.open();
        EXPECT_TRUE(disk) << disk.error().message();
        std::vector<bool> refused;
        ByteVector unit(k_unit);
        for (uint64_t number = 0; disk && number < layout.units(); ++number) {
            auto read = (*disk)->read(number * k_unit, unit);
            refused.push_back(!read);
            if (!read) {
                EXPECT_EQ(read.error().code(), ErrorCode::Integrity);
            } else {
                EXPECT_TRUE(std::ranges::equal(unit, Bytes(content).subspan(number * k_unit, k_unit))) << number;
            }
        }
        return refused;
    }
    MutBytes at(uint64_t offset, uint64_t size = k_unit) { return MutBytes(image.state.current).subspan(offset, size); }
};

TEST(AuthenticatedDisks, ChangedUnitsAreRefusedAndNoOthers) {
    Written disk;
    std::mt19937 random(11);
    std::vector<bool> expected(disk.layout.units());
    for (uint64_t number : {uint64_t{0}, uint64_t{1}, uint64_t{500}, disk.layout.units() - 2}) {
        disk.at(disk.layout.data_at() + number * k_unit)[random() % k_unit] ^= std::byte{0x10};
        expected[number] = true;
    }
    EXPECT_EQ(disk.refusals(), expected);
    // The message says which.
    auto opened = *disk.image.open();
    ByteVector unit(k_unit);
    auto read = opened->read(500 * k_unit, unit);
    ASSERT_FALSE(read);
    EXPECT_NE(read.error().message().find("image: data unit 500 "), std::string::npos) << read.error().message();
    // Written anew, it is right again; a part of it is not written over what is not known.
    EXPECT_FALSE(opened->write(500 * k_unit + 512, Bytes(unit).first(512)));
    ASSERT_TRUE(opened->write(500 * k_unit, Bytes(disk.content).first(k_unit)));
    EXPECT_TRUE(opened->read(500 * k_unit, unit));
}

TEST(AuthenticatedDisks, SwappedUnitsAreRefused) {
    Written disk;
    auto first = disk.at(disk.layout.data_at() + 3 * k_unit);
    auto second = disk.at(disk.layout.data_at() + 4 * k_unit);
    std::ranges::swap_ranges(first, second);
    // Tags and all.
    auto first_tag = disk.at(disk.layout.tags_at() + 3 * disk_spec::k_tag_entry_size, disk_spec::k_tag_entry_size);
    auto second_tag = disk.at(disk.layout.tags_at() + 4 * disk_spec::k_tag_entry_size, disk_spec::k_tag_entry_size);
    std::ranges::swap_ranges(first_tag, second_tag);
    auto refused = disk.refusals();
    EXPECT_TRUE(refused[3] && refused[4]);
}

// What was there once, put back: a unit, with its tag, with its tag block, with the table, with the header.
TEST(AuthenticatedDisks, OldUnitsAreRefused) {
    Written disk;
    auto const old = disk.image.bytes;
    {
        auto opened = *disk.image.open();
        ASSERT_TRUE(opened->write(5 * k_unit, pattern(k_unit, 77)));
        ASSERT_TRUE(opened->close());
        disk.image.secret->epoch = opened->header().epoch;
    }
    auto const now = disk.image.state.current;
    auto put_back = [&](uint64_t offset, uint64_t size) {
        std::copy_n(old.begin() + static_cast<std::ptrdiff_t>(offset), size,
                    disk.image.state.current.begin() + static_cast<std::ptrdiff_t>(offset));
    };
    auto refused = [&](uint64_t unit) {
        auto opened = disk.image.open();
        if (!opened) return opened.error().code() == ErrorCode::Integrity;
        ByteVector bytes(k_unit);
        return !(*opened)->read(unit * k_unit, bytes);
    };
    ASSERT_FALSE(refused(5));
    disk.image.set(now);
    put_back(disk.layout.data_at() + 5 * k_unit, k_unit);
    EXPECT_TRUE(refused(5));
    put_back(disk.layout.tags_at() + 5 * disk_spec::k_tag_entry_size, disk_spec::k_tag_entry_size);
    EXPECT_TRUE(refused(5));
    put_back(disk.layout.tags_at(), k_unit);
    EXPECT_TRUE(refused(5));
    put_back(disk.layout.table_at(), k_unit);
    EXPECT_TRUE(refused(5));
    put_back(0, old.size()); // the whole image
    EXPECT_TRUE(refused(5));
    // Negative control: without what the home knows, the whole old image is a sound disk.
    disk.image.set(old);
    disk.image.secret->epoch = 0;
    EXPECT_FALSE(refused(5));
}

TEST(AuthenticatedDisks, ChangedTagsAndTablesAreRefused) {
    Written disk;
    for (uint64_t offset : {disk.layout.tags_at() + 17, disk.layout.tags_at() + 4000}) {
        disk.image.rewind();
        disk.at(offset, 1)[0] ^= std::byte{1};
        auto refused = disk.refusals();
        for (uint64_t number = 0; number < refused.size(); ++number)
            EXPECT_EQ(refused[number], number < disk_spec::k_tags_in_block) << number;
    }
    for (uint64_t offset : {uint64_t{0}, uint64_t{200}, k_unit - 1}) {
        disk.image.rewind();
        disk.at(disk.layout.table_at() + offset, 1)[0] ^= std::byte{1};
        auto opened = disk.image.open();
        ASSERT_FALSE(opened);
        EXPECT_EQ(opened.error().code(), ErrorCode::Integrity);
    }
    // A unit that was written cannot be made one that never was, nor a tag block.
    disk.image.rewind();
    std::ranges::fill(disk.at(disk.layout.tags_at(), disk_spec::k_tag_entry_size), std::byte{0});
    EXPECT_TRUE(disk.refusals()[0]);
    disk.image.rewind();
    std::ranges::fill(disk.at(disk.layout.tags_at()), std::byte{0});
    EXPECT_TRUE(disk.refusals()[0]);
}

// While the machine runs, too: what a checkpoint moves is under the tags in memory.
TEST(AuthenticatedDisks, AChangedJournalIsSeen) {
    DiskImage image(DiskProtection::Authenticated, 1 << 20);
    auto disk = *image.open();
    auto content = pattern(k_unit, 5);
    ASSERT_TRUE(disk->write(0, content));
    ASSERT_TRUE(disk->flush());
    auto layout = disk->header().layout;
    image.state.current[layout.journal_at() + k_unit + 9] ^= std::byte{1};
    ByteVector unit(k_unit);
    EXPECT_FALSE(disk->read(0, unit));
    ASSERT_TRUE(disk->close());
    EXPECT_FALSE(disk->read(0, unit));
}

TEST(AuthenticatedDisks, ReadOnlyImagesAreNotWritten) {
    Written disk;
    auto opened = disk.image.open(true);
    ASSERT_TRUE(opened);
    EXPECT_EQ(read_all(**opened), disk.content);
    EXPECT_TRUE((*opened)->close());
    opened->reset();
    EXPECT_EQ(disk.image.state.operations, 0U);
}

// One thread uses the disk, and another brings it to rest again and again: the image is then one that opens without
// being recovered, and has everything.
TEST(AuthenticatedDisks, ComeToRestWhileTheyAreUsed) {
    constexpr uint64_t k_size = uint64_t{1} << 20;
    DiskImage image(DiskProtection::Authenticated, k_size);
    ByteVector model(k_size);
    {
        auto opened = image.open();
        ASSERT_TRUE(opened) << opened.error().message();
        auto& disk = **opened;
        auto const epoch = disk.header().epoch;
        std::atomic<bool> over{false};
        std::thread user([&] {
            std::mt19937 random(11);
            for (int step = 0; step < 400; ++step) {
                uint64_t const first = random() % (k_size / 512);
                uint64_t const count = 1 + random() % std::min<uint64_t>(60, k_size / 512 - first);
                auto const content = pattern(count * 512, random());
                EXPECT_TRUE(disk.write(first * 512, content));
                std::ranges::copy(content, model.begin() + static_cast<std::ptrdiff_t>(first * 512));
                ByteVector back(count * 512);
                EXPECT_TRUE(disk.read(first * 512, back));
                EXPECT_EQ(back, content);
                if (step % 7 != 0) continue;
                EXPECT_TRUE(disk.flush());
            }
            over = true;
        });
        while (!over) EXPECT_TRUE(disk.close());
        user.join();
        ASSERT_TRUE(disk.close());
        EXPECT_GT(disk.header().epoch, epoch + 1);
        VolatileDisk::State copy = image.state;
        auto at_rest =
            open_encrypted_disk("copy", std::make_unique<VolatileDisk>(copy, true), *image.secret, image.expected);
        ASSERT_TRUE(at_rest) << at_rest.error().message();
        EXPECT_EQ(read_all(**at_rest), model);
    }
}

TEST(UnauthenticatedDisks, ChangesGoUnseen) {
    DiskImage image(DiskProtection::Unauthenticated, 1 << 20);
    auto content = pattern(k_unit, 5);
    auto disk = *image.open();
    ASSERT_TRUE(disk->write(0, content));
    image.state.current[disk->header().layout.data_at() + 100] ^= std::byte{1};
    ByteVector unit(k_unit);
    ASSERT_TRUE(disk->read(0, unit));
    EXPECT_NE(unit, content); // one block of 16 bytes is garbage
    EXPECT_TRUE(std::equal(unit.begin() + 112, unit.end(), content.begin() + 112));
}

// A 512-byte write touches its sector only: no read, no change beside it.
TEST(UnauthenticatedDisks, SectorsAreWrittenAlone) {
    DiskImage image(DiskProtection::Unauthenticated, 1 << 20);
    auto disk = *image.open();
    auto content = pattern(2 * k_unit, 6);
    ASSERT_TRUE(disk->write(0, content));
    auto before = image.state.current;
    auto sector = pattern(512, 8);
    ASSERT_TRUE(disk->write(k_unit + 1024, sector));
    uint64_t const at = disk->header().layout.data_at() + k_unit + 1024;
    for (uint64_t i = 0; i < before.size(); ++i)
        if (i < at || i >= at + 512) {
            ASSERT_EQ(before[i], image.state.current[i]) << i;
        }
    // What a whole write of the unit would have put there.
    auto there = ByteVector(image.state.current.begin() + static_cast<std::ptrdiff_t>(at),
                            image.state.current.begin() + static_cast<std::ptrdiff_t>(at + 512));
    std::ranges::copy(sector, content.begin() + k_unit + 1024);
    ASSERT_TRUE(disk->write(k_unit, Bytes(content).last(k_unit)));
    EXPECT_TRUE(std::equal(there.begin(), there.end(), image.state.current.begin() + static_cast<std::ptrdiff_t>(at)));
}

TEST(DiskSecretLists, AreWhatWasEncoded) {
    DiskSecrets secrets;
    auto first = *DiskSecret::random();
    auto second = *DiskSecret::random();
    second.epoch = 77;
    auto first_copy = copy_of(first);
    auto second_copy = copy_of(second);
    secrets.add(std::move(first_copy));
    secrets.add(std::move(second_copy));
    auto encoded = secrets.encode();
    auto decoded = DiskSecrets::decode(encoded.expose());
    ASSERT_TRUE(decoded);
    ASSERT_TRUE(decoded->find(second.disk));
    EXPECT_EQ(decoded->find(second.disk)->epoch, 77U);
    EXPECT_TRUE(std::ranges::equal(decoded->find(first.disk)->key.expose(), first.key.expose()));
    EXPECT_FALSE(decoded->find(*crypto::random_uuid()));
    ByteVector bytes(encoded.expose().begin(), encoded.expose().end());
    for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(DiskSecrets::decode(Bytes(bytes).first(size)));
    bytes[4] = std::byte{200};
    EXPECT_FALSE(DiskSecrets::decode(bytes));
}

TEST(DiskFiles, CopiesKeepContentAndHoles) {
    coffer::tests::TempFolder folder;
    auto raw_path = folder.path() / "raw";
    constexpr uint64_t k_size = (3 << 20) + 1536;
    ByteVector content(k_size);
    auto some = pattern(300'000, 4);
    std::ranges::copy(some, content.begin() + 4096 * 10 + 512);
    std::ranges::copy(Bytes(some).first(512), content.end() - 512);
    ASSERT_TRUE(replace_file(raw_path, content));
    for (auto protection : {DiskProtection::Unauthenticated, DiskProtection::Authenticated}) {
        auto secret = *DiskSecret::random();
        auto vm = *crypto::random_uuid();
        auto image = folder.path() / to_string(protection);
        ASSERT_TRUE(create_disk(image, secret, {vm, protection, k_size}));
        EXPECT_EQ(create_disk(image, secret, {vm, protection, k_size}).error().code(), ErrorCode::AlreadyExists);
        {
            auto raw = *devices::RawDisk::open(raw_path, {.read_only = true});
            auto disk = *open_disk(image, secret, {vm, protection});
            uint64_t told = 0;
            ASSERT_TRUE(copy_disk(*raw, *disk, [&](uint64_t done, uint64_t total) {
                EXPECT_EQ(total, k_size);
                EXPECT_GT(done, told);
                told = done;
            }));
            EXPECT_EQ(told, k_size);
            ASSERT_TRUE(disk->close());
            // The image is in use.
            EXPECT_EQ(open_disk(image, secret, {vm, protection}).error().code(), ErrorCode::Busy);
        }
        auto disk = *open_disk(image, secret, {vm, protection}, true);
        EXPECT_EQ(read_all(*disk), content);
        struct stat info {};
        ASSERT_EQ(::stat(image.c_str(), &info), 0);
        EXPECT_LT(info.st_blocks * 512, static_cast<int64_t>((1 << 20) + disk->header().layout.table_at()));
        EXPECT_EQ(open_disk(folder.path() / "none", secret, {vm, protection}).error().code(), ErrorCode::Integrity);
    }
}

TEST(DiskFiles, ImpossibleSizesAreRefused) {
    coffer::tests::TempFolder folder;
    auto secret = *DiskSecret::random();
    for (uint64_t size : {uint64_t{0}, uint64_t{511}, uint64_t{1} << 62}) {
        auto made = create_disk(folder.path() / "disk", secret, {*crypto::random_uuid(), {}, size});
        ASSERT_FALSE(made);
        EXPECT_EQ(made.error().code(), ErrorCode::InvalidArgument);
        EXPECT_FALSE(std::filesystem::exists(folder.path() / "disk"));
    }
}

} // namespace
} // namespace coffer::vmm::tests
