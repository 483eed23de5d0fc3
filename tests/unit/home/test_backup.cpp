// Backups: what is in them comes out again, nothing else does, and none is half made or half restored.
#include "tests/unit/home/crash_fixture.hpp"
#include "vmm/home/backup.hpp"
#include "vmm/home/disk_copies.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm::tests {
namespace {

constexpr uint64_t k_disk_size = 300'000; // four chunks and a part of one

class BackupTest : public HomeCrash {
protected:
    void SetUp() override {
        HomeCrash::SetUp();
        // A hole, data across a chunk's end, zeros that are no hole, and a last chunk that is short.
        ByteVector content(k_disk_size);
        for (size_t i = 65'000; i < 70'000; ++i) content[i] = static_cast<std::byte>(i * 7);
        for (size_t i = 299'000; i < k_disk_size; ++i) content[i] = std::byte{0xD1};
        put(m_disk, content);
        m_content = content;
    }
    Result<void> write(std::filesystem::path const& path, bool disks, std::string const& name = "vm") {
        auto home = TRY(m_host.open(name));
        auto fd = TRY(open_file(path, O_RDWR | O_CREAT | O_EXCL));
        BackupOptions options;
        options.provider_name = "the provider";
        options.provider_kind = ProviderKind::Kmip;
        if (disks) options.disks = {{0, m_disk}};
        return write_backup(*home, fd.get(), path, options);
    }
    Result<BackupContent> unlock(BackupFile& file) {
        return file.unlock([&](BundleHeader const&) -> Result<crypto::BundleKey> { return copy_of(m_host.key()); });
    }
    Result<void> extract(BackupFile& file, std::filesystem::path const& to) {
        auto fd = TRY(open_file(to, O_RDWR | O_CREAT | O_EXCL));
        auto const* part = file.header().find("disk-0");
        if (!part) return make_error(ErrorCode::NotFound, "no disk");
        return file.extract_disk(*part, fd.get(), to, [](uint64_t) { return Result<void>(); });
    }
    // Opens, unlocks and extracts; the first error.
    Result<void> read_all(std::filesystem::path const& path) {
        auto file = TRY(BackupFile::open(path));
        TRY(unlock(file));
        std::filesystem::remove(m_out);
        return extract(file, m_out);
    }
    // The same VM in place of the home that is there, by what the backup says.
    Result<void> restore(std::filesystem::path const& path, std::string const& name = "vm") {
        auto file = TRY(BackupFile::open(path));
        auto content = TRY(unlock(file));
        HomeContents contents;
        contents.nvram = content.nvram;
        contents.tpm = content.tpm;
        contents.history = content.history;
        contents.event = HistoryKind::Restored;
        return restore_home(m_host.location(name), content.config, contents, std::move(content.seal),
                            file.header().sequence);
    }

    std::filesystem::path m_disk = m_beside.path() / "disk.img";
    std::filesystem::path m_file = m_beside.path() / "vm.backup";
    std::filesystem::path m_out = m_beside.path() / "out.img";
    ByteVector m_content;
};

TEST_F(BackupTest, HoldsTheWholeHome) {
    ASSERT_TRUE((*m_host.open("vm"))->append_history(HistoryKind::Other, "something happened"));
    auto written = write(m_file, true);
    ASSERT_TRUE(written) << written.error().message();
    auto file = BackupFile::open(m_file);
    ASSERT_TRUE(file) << file.error().message();
    auto const& header = file->header();
    EXPECT_EQ(header.name, "vm");
    EXPECT_EQ(header.vm, m_config.uuid);
    EXPECT_TRUE(header.encrypted);
    EXPECT_EQ(header.provider_name, "the provider");
    EXPECT_EQ(header.provider_kind, ProviderKind::Kmip);
    EXPECT_EQ(header.key_id, "1/some-key");
    EXPECT_EQ(header.sequence, summarize_home(m_host.location("vm"))->sequence);
    auto content = unlock(*file);
    ASSERT_TRUE(content) << content.error().message();
    EXPECT_EQ(content->config, m_config);
    EXPECT_EQ(content->nvram, m_nvram);
    EXPECT_EQ(content->tpm, m_tpm);
    ASSERT_FALSE(content->history.empty());
    EXPECT_EQ(content->history.back().text, "something happened");
    ASSERT_TRUE(content->seal);
    EXPECT_EQ(content->seal->wrapped.bytes, bytes_of("wrapped bundle key"));
    auto extracted = extract(*file, m_out);
    ASSERT_TRUE(extracted) << extracted.error().message();
    EXPECT_EQ(HomeTest::content(m_out), m_content);
    // Three chunks have something in them.
    EXPECT_EQ(header.find("disk-0")->chunks, 3U);
}

TEST_F(BackupTest, OfAnUnencryptedHome) {
    auto config = make_config("plain", TpmKind::None);
    ASSERT_TRUE(create_home(m_host.location("plain"), config, m_nvram, std::nullopt));
    ASSERT_TRUE(write(m_file, true, "plain"));
    auto file = BackupFile::open(m_file);
    ASSERT_TRUE(file);
    EXPECT_FALSE(file->header().encrypted);
    auto content = unlock(*file);
    ASSERT_TRUE(content) << content.error().message();
    EXPECT_EQ(content->config, config);
    EXPECT_FALSE(content->seal);
    ASSERT_TRUE(extract(*file, m_out));
    EXPECT_EQ(HomeTest::content(m_out), m_content);
    auto bytes = HomeTest::content(m_file);
    bytes[bytes.size() - 1000] ^= std::byte{1};
    put(m_file, bytes);
    auto damaged = read_all(m_file);
    ASSERT_FALSE(damaged);
    EXPECT_EQ(damaged.error().code(), ErrorCode::Integrity);
}

TEST_F(BackupTest, NothingInItIsPlaintextButWhatTheFormatSays) {
    ASSERT_TRUE(write(m_file, true));
    auto const bytes = content(m_file);
    auto contains = [&](Bytes what) {
        return std::search(bytes.begin(), bytes.end(), what.begin(), what.end()) != bytes.end();
    };
    EXPECT_TRUE(contains(as_bytes(std::string_view("1/some-key"))));
    for (auto const* secret : {"planted secret", "OVMF", "secret-disk-name", "/var/lib"})
        EXPECT_FALSE(contains(as_bytes(std::string_view(secret)))) << secret;
    EXPECT_FALSE(contains(ByteVector(32, std::byte{0x5A}))) << "UEFI variables";
    EXPECT_FALSE(contains(ByteVector(32, std::byte{0xD1}))) << "the disk";
    EXPECT_FALSE(contains(m_host.key().expose()));
}

// Every byte of the header and of `keys`, and samples of the rest; each changed one is refused, naming the file.
TEST_F(BackupTest, EachChangedByteIsRefused) {
    ASSERT_TRUE(write(m_file, true));
    auto const original = content(m_file);
    size_t tried = 0;
    for (size_t at = 0; at < original.size(); at += at < 1024 ? 1 : at < 32'700 ? 997 : at < 37'000 ? 13 : 251) {
        auto changed = original;
        changed[at] ^= std::byte{0x10};
        put(m_file, changed);
        auto read = read_all(m_file);
        ASSERT_FALSE(read) << "byte " << at;
        ASSERT_EQ(read.error().code(), ErrorCode::Integrity) << "byte " << at << ": " << read.error().message();
        ASSERT_NE(read.error().message().find(m_file.native()), std::string::npos) << read.error().message();
        ++tried;
    }
    EXPECT_GT(tried, 1500U);
    put(m_file, original);
    EXPECT_TRUE(read_all(m_file));
}

TEST_F(BackupTest, CutAndStretchedFilesAreRefused) {
    ASSERT_TRUE(write(m_file, true));
    auto const original = content(m_file);
    for (size_t size : {size_t{0}, size_t{1}, size_t{64}, size_t{32'767}, size_t{32'768}, original.size() - 4096,
                        original.size() - 1}) {
        put(m_file, Bytes(original).first(size));
        auto read = read_all(m_file);
        ASSERT_FALSE(read) << size;
        EXPECT_EQ(read.error().code(), ErrorCode::Integrity) << read.error().message();
    }
    auto longer = original;
    longer.push_back(std::byte{0});
    put(m_file, longer);
    EXPECT_FALSE(read_all(m_file));
}

// A part of another backup of the same VM, at the same place and of the same size.
TEST_F(BackupTest, MixedBackupsAreRefused) {
    ASSERT_TRUE(write(m_file, true));
    auto const other_path = m_beside.path() / "other.backup";
    ASSERT_TRUE(write(other_path, true));
    auto const original = content(m_file);
    auto const other = content(other_path);
    ASSERT_EQ(original.size(), other.size());
    auto const header = BackupFile::open(m_file)->header();
    unsigned mixed = 0;
    for (auto const& part : header.parts) {
        auto mix = original;
        std::copy_n(other.begin() + static_cast<std::ptrdiff_t>(part.offset), part.stored_size,
                    mix.begin() + static_cast<std::ptrdiff_t>(part.offset));
        if (mix == original) continue; // the home's own files are the same in both
        put(m_file, mix);
        auto read = read_all(m_file);
        ASSERT_FALSE(read) << part.name;
        EXPECT_EQ(read.error().code(), ErrorCode::Integrity);
        ++mixed;
    }
    EXPECT_GE(mixed, 1U);
    // The other's header before this one's parts.
    auto mix = original;
    std::copy_n(other.begin(), backup_spec::k_header_size, mix.begin());
    put(m_file, mix);
    EXPECT_FALSE(read_all(m_file));
}

TEST_F(BackupTest, AnotherKeyDoesNotOpenIt) {
    ASSERT_TRUE(write(m_file, false));
    auto file = BackupFile::open(m_file);
    auto wrong = file->unlock([](BundleHeader const&) { return crypto::BundleKey::random(); });
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::Integrity);
    auto none = file->unlock([](BundleHeader const&) -> Result<crypto::BundleKey> {
        return make_error(ErrorCode::KeyUnavailable, "no such key");
    });
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code(), ErrorCode::KeyUnavailable);
}

TEST_F(BackupTest, OfADamagedHomeIsRefused) {
    auto bytes = content(file("nvram"));
    auto home = m_host.open("vm");
    bytes[5000] ^= std::byte{1};
    put(file("nvram"), bytes);
    auto fd = open_file(m_file, O_RDWR | O_CREAT | O_EXCL);
    auto written = write_backup(**home, fd->get(), m_file, {});
    ASSERT_FALSE(written);
    EXPECT_EQ(written.error().code(), ErrorCode::Integrity);
    EXPECT_FALSE(BackupFile::open(m_file));
}

// Between a backup and the loss of the home the VM ran on: restoring is a rollback that the owner asked for, and from
// then on the restored home alone opens.
TEST_F(BackupTest, RestoredHomeIsTheNewest) {
    ASSERT_TRUE(write(m_file, false));
    ASSERT_TRUE((*m_host.open("vm"))->commit(HomeFile::Tpm, bytes_of("newer")));
    auto const lost = m_beside.path() / "lost";
    std::filesystem::copy(m_host.location("vm").folder(), lost, std::filesystem::copy_options::recursive);
    auto const before = read_host_record(record());
    ASSERT_FALSE(restore(m_file)) << "there is a home of this name";
    std::filesystem::remove_all(m_host.location("vm").folder());
    auto restored = restore(m_file);
    ASSERT_TRUE(restored) << restored.error().message();
    auto const after = read_host_record(record());
    EXPECT_EQ((*after)->sequence, (*before)->sequence + 1);
    {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home) << home.error().message();
        EXPECT_EQ((*home)->config(), m_config);
        EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
        auto history = (*home)->history();
        ASSERT_TRUE(history);
        EXPECT_EQ(history->front().kind, HistoryKind::Created);
        EXPECT_EQ(history->back().kind, HistoryKind::Restored);
    }
    // The lost home, found again, cannot take its place; nor can a file of it.
    auto const now = m_beside.path() / "now";
    std::filesystem::copy(m_host.location("vm").folder(), now, std::filesystem::copy_options::recursive);
    put(file("tpm"), content(lost / "tpm"));
    EXPECT_FALSE(m_host.open("vm"));
    std::filesystem::remove_all(m_host.location("vm").folder());
    std::filesystem::copy(lost, m_host.location("vm").folder(), std::filesystem::copy_options::recursive);
    auto old = m_host.open("vm");
    ASSERT_FALSE(old);
    EXPECT_EQ(old.error().code(), ErrorCode::Integrity);
}

TEST_F(BackupTest, RestoredWhereTheHostKnowsNothing) {
    ASSERT_TRUE(write(m_file, false));
    std::filesystem::remove_all(m_folder.path() / "root");
    std::filesystem::remove_all(m_folder.path() / "state");
    ASSERT_TRUE(restore(m_file));
    auto home = m_host.open("vm");
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
}

TEST_F(BackupTest, StoppedAnywhereInRestoring) {
    ASSERT_TRUE(write(m_file, false));
    unsigned stops = 0;
    bool finished = false;
    for (unsigned at = 0; at < k_most_writes && !finished; ++at) {
        rewind();
        std::filesystem::remove_all(m_host.location("vm").folder());
        auto run = run_traced([&] { return restore(m_file) ? 0 : 1; }, {{at, Fault::Kill}});
        finished = !run.killed;
        stops += run.killed ? 1 : 0;
        if (auto home = m_host.open("vm"); !home) {
            ASSERT_FALSE(finished);
            ASSERT_EQ(home.error().code(), ErrorCode::NotFound) << at << ": " << home.error().message();
            auto again = restore(m_file);
            ASSERT_TRUE(again) << at << ": " << again.error().message();
        }
        auto home = m_host.open("vm");
        ASSERT_TRUE(home) << at << ": " << home.error().message();
        EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
    }
    EXPECT_TRUE(finished);
    EXPECT_GE(stops, 20U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

TEST_F(BackupTest, StoppedAnywhereInBackingUp) {
    unsigned stops = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        std::filesystem::remove(m_file);
        auto run = run_traced([&] { return write(m_file, true) ? 0 : 1; }, {{at, Fault::Kill}});
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            EXPECT_TRUE(read_all(m_file));
            break;
        }
        ++stops;
        // The file is whole or none; the home is as it was.
        if (std::filesystem::exists(m_file)) {
            if (auto read = read_all(m_file); !read) {
                EXPECT_EQ(read.error().code(), ErrorCode::Integrity);
            }
        }
        EXPECT_TRUE(m_host.open("vm"));
    }
    EXPECT_GE(stops, 8U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

class BackupOnFailingDisk : public BackupTest, public testing::WithParamInterface<Fault> {};

// An error, or done; the home is as it was, and what says that it is a backup is one.
TEST_P(BackupOnFailingDisk, IsAnErrorOrDone) {
    unsigned errors = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        std::filesystem::remove(m_file);
        auto run = run_traced([&] { return write(m_file, true) ? 0 : 1; }, {{at, GetParam()}});
        ASSERT_FALSE(run.killed);
        errors += run.exit_code != 0 ? 1 : 0;
        // After an error the file may be whole all the same, where the last sync failed; nobody gives it its name then.
        if (run.exit_code == 0) {
            EXPECT_TRUE(read_all(m_file)) << at;
        }
        EXPECT_TRUE(m_host.open("vm"));
        if (at >= run.writes) break;
    }
    EXPECT_GE(errors, 8U);
    errors = 0;
    std::filesystem::remove(m_file);
    ASSERT_TRUE(write(m_file, false));
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        std::filesystem::remove_all(m_host.location("vm").folder());
        auto run = run_traced([&] { return restore(m_file) ? 0 : 1; }, {{at, GetParam()}});
        ASSERT_FALSE(run.killed);
        errors += run.exit_code != 0 ? 1 : 0;
        auto home = m_host.open("vm");
        EXPECT_TRUE(home || (run.exit_code != 0 && home.error().code() == ErrorCode::NotFound)) << at;
        if (at >= run.writes) break;
    }
    EXPECT_GE(errors, 15U);
}
INSTANTIATE_TEST_SUITE_P(Faults, BackupOnFailingDisk, testing::Values(Fault::Eio, Fault::Enospc));

class DiskCopyTest : public BackupTest {};

TEST_F(DiskCopyTest, CopiesAreGoneUnlessTheyAreKept) {
    auto const copy = m_beside.path() / "new-disk.img";
    auto nothing = [](uint64_t) { return Result<void>(); };
    {
        auto copies = DiskCopies::plan({{m_disk.native(), false}}, "new", {});
        ASSERT_TRUE(copies) << copies.error().message();
        EXPECT_EQ(copies->disks().front().path, copy.native());
        ASSERT_TRUE(copies->copy(nothing));
        ASSERT_TRUE(copies->place());
        EXPECT_EQ(content(copy), m_content);
    }
    EXPECT_FALSE(std::filesystem::exists(copy));
    auto copies = DiskCopies::plan({{m_disk.native(), false}}, "new", {});
    ASSERT_TRUE(copies && copies->copy(nothing) && copies->place());
    copies->keep();
    EXPECT_EQ(content(copy), m_content);
    // Taken.
    auto again = DiskCopies::plan({{m_disk.native(), false}}, "new", {});
    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), ErrorCode::AlreadyExists);
    // Two disks that would have one name.
    auto two = DiskCopies::plan({{m_disk.native(), false}, {m_disk.native(), false}}, "next", {});
    EXPECT_FALSE(two);
    auto none = DiskCopies::plan({{(m_beside.path() / "missing").native(), false}}, "next", {});
    ASSERT_FALSE(none);
    EXPECT_EQ(none.error().code(), ErrorCode::NotFound);
    auto device = DiskCopies::plan({{"/dev/null", false}}, "next", {});
    EXPECT_FALSE(device);
    auto shared = DiskCopies::plan({{m_disk.native(), true}}, "next", {});
    ASSERT_TRUE(shared);
    EXPECT_EQ(shared->disks().front().path, m_disk.native());
}

// A clone is a home and copies of disks: stopped anywhere, the new VM is there with its disks, or it is not there, and
// the source is as it was. What is left does not stand in the way of another attempt, but for a disk that has its name
// already, which is the user's to judge.
TEST_F(DiskCopyTest, StoppedAnywhereInCloning) {
    auto const copy = m_beside.path() / "new-disk.img";
    auto clone = [&]() -> Result<void> {
        auto source = TRY(m_host.open("vm"));
        auto copies = TRY(DiskCopies::plan({{m_disk.native(), false}}, "new", {}));
        TRY(copies.copy([](uint64_t) { return Result<void>(); }));
        TRY(copies.place());
        auto config = source->config();
        config.name = "new";
        config.uuid = *Uuid::parse("6f0c9a52-55a5-4f1f-8f1b-2b6a4b1f0001");
        config.disks = copies.disks();
        auto const nvram = TRY(source->load(HomeFile::Nvram));
        auto const tpm = TRY(source->load(HomeFile::Tpm));
        TRY(create_home(m_host.location("new"), config, nvram, m_host.seal(), tpm));
        copies.keep();
        return {};
    };
    bool finished = false;
    unsigned stops = 0;
    for (unsigned at = 0; at < k_most_writes && !finished; ++at) {
        rewind();
        std::filesystem::remove(copy);
        auto run = run_traced([&] { return clone() ? 0 : 1; }, {{at, Fault::Kill}});
        finished = !run.killed;
        stops += run.killed ? 1 : 0;
        auto home = m_host.open("new");
        if (home) {
            EXPECT_EQ(content(copy), m_content);
        } else {
            ASSERT_FALSE(finished);
            ASSERT_EQ(home.error().code(), ErrorCode::NotFound) << home.error().message();
            std::filesystem::remove(copy);
            auto again = clone();
            ASSERT_TRUE(again) << at << ": " << again.error().message();
            home = m_host.open("new");
            ASSERT_TRUE(home);
        }
        EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
        EXPECT_NE((*home)->config().uuid, m_config.uuid);
        auto source = m_host.open("vm");
        ASSERT_TRUE(source);
        EXPECT_EQ(*(*source)->load(HomeFile::Tpm), m_tpm);
    }
    EXPECT_TRUE(finished);
    EXPECT_GE(stops, 20U);
    RecordProperty("stop_points", static_cast<int>(stops));
}

} // namespace
} // namespace coffer::vmm::tests
