// What someone who can write a home's files may try: change, cut, stretch, swap, replay, remove.
#include "tests/unit/home/home_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

void flip(int fd, uint64_t offset, std::filesystem::path const& path) {
    std::array<std::byte, 1> byte{};
    ASSERT_TRUE(pread_all(fd, byte, offset, path));
    byte[0] ^= std::byte{0x04};
    ASSERT_TRUE(pwrite_all(fd, byte, offset, path));
}

TEST_F(HomeTest, FlippingAnyByteOfKeysIsRefused) {
    auto path = file("keys");
    auto size = std::filesystem::file_size(path);
    auto fd = open_file(path, O_RDWR);
    ASSERT_TRUE(fd);
    for (uint64_t offset = 0; offset < size; ++offset) {
        flip(fd->get(), offset, path);
        expect_refused(path);
        flip(fd->get(), offset, path);
        if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "byte " << offset;
    }
    expect_opens();
}

// A home that has each kind of file.
class FullHome : public HomeTest, public testing::WithParamInterface<char const*> {
protected:
    void SetUp() override {
        HomeTest::SetUp();
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        ASSERT_TRUE((*home)->commit(HomeFile::Snapshots, m_tpm));
        ASSERT_TRUE((*home)->commit(HomeFile::Disks, m_tpm));
        ASSERT_TRUE((*home)->commit_file("snapshot-1.state", m_nvram));
        add_image(**home, "snapshot-1.memory", m_nvram);
        for (int i = 0; i < 8; ++i) ASSERT_TRUE((*home)->append_history(HistoryKind::Other, "event"));
    }
};
constexpr auto k_files = {"config", "nvram", "tpm", "disks", "history", "snapshots"};
constexpr auto k_all_files = {
    "keys", "config", "nvram", "tpm", "disks", "history", "snapshots", "snapshot-1.state", "snapshot-1.memory"};
std::string test_name(testing::TestParamInfo<char const*> const& info) {
    std::string name;
    for (char c : std::string_view(info.param)) name += c == '-' || c == '.' ? '_' : c;
    return name;
}

class FlippedFile : public FullHome {};

TEST_P(FlippedFile, IsRefused) {
    auto path = file(GetParam());
    auto size = std::filesystem::file_size(path);
    auto fd = open_file(path, O_RDWR);
    ASSERT_TRUE(fd);
    // Every byte of the header and of the tags, and a sample of the units.
    uint64_t const tags = size - (size - 4096) / (4096 + 32) * 32;
    for (uint64_t offset = 0; offset < size; offset += offset >= 4096 && offset < tags ? 61 : 1) {
        flip(fd->get(), offset, path);
        auto home = m_host.open("vm");
        ASSERT_FALSE(home) << "byte " << offset;
        ASSERT_EQ(home.error().code(), ErrorCode::Integrity) << "byte " << offset << home.error().message();
        ASSERT_NE(home.error().message().find(path.native()), std::string::npos) << home.error().message();
        flip(fd->get(), offset, path);
    }
    expect_opens();
}
INSTANTIATE_TEST_SUITE_P(Files, FlippedFile, testing::ValuesIn(k_files), test_name);

// Of a further file, opening looks at the header, and loading at the rest.
class FlippedFurtherFile : public FullHome {};

TEST_P(FlippedFurtherFile, IsRefused) {
    auto path = file(GetParam());
    bool const image = std::string_view(GetParam()).ends_with(".memory");
    auto size = std::filesystem::file_size(path);
    auto fd = open_file(path, O_RDWR);
    ASSERT_TRUE(fd);
    uint64_t const tags = size - (size - 4096) / (4096 + 32) * 32;
    for (uint64_t offset = 0; offset < (image ? 4096 : size); offset += offset >= 4096 && offset < tags ? 61 : 1) {
        flip(fd->get(), offset, path);
        auto home = m_host.open("vm");
        auto error = home ? (*home)->load_file(GetParam()).error() : home.error();
        EXPECT_EQ(home.has_value(), offset >= 4096) << offset;
        ASSERT_EQ(error.code(), ErrorCode::Integrity) << "byte " << offset << error.message();
        ASSERT_NE(error.message().find(path.native()), std::string::npos) << error.message();
        flip(fd->get(), offset, path);
    }
    expect_opens();
}
INSTANTIATE_TEST_SUITE_P(Files, FlippedFurtherFile, testing::Values("snapshot-1.state", "snapshot-1.memory"),
                         test_name);

class ResizedFile : public FullHome {};

TEST_P(ResizedFile, IsRefused) {
    auto path = file(GetParam());
    auto whole = content(path);
    for (size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{100}, size_t{4095}, size_t{4096},
                        size_t{4097}, size_t{8192}, whole.size() - 1}) {
        if (size >= whole.size()) continue;
        put(path, Bytes(whole).first(size));
        expect_refused(path);
    }
    for (size_t more : {size_t{1}, size_t{32}, size_t{4096}, size_t{4128}}) {
        auto longer = whole;
        append(longer, ByteVector(more));
        put(path, longer);
        expect_refused(path);
    }
    put(path, whole);
    expect_opens();
}
INSTANTIATE_TEST_SUITE_P(Files, ResizedFile, testing::ValuesIn(k_all_files), test_name);

class MissingFile : public FullHome {};

TEST_P(MissingFile, IsRefused) {
    std::filesystem::remove(file(GetParam()));
    expect_refused(file(GetParam()));
}
INSTANTIATE_TEST_SUITE_P(Files, MissingFile, testing::ValuesIn(k_all_files), test_name);

// Each file in the place of each other.
class SwappedFile : public FullHome {};

TEST_P(SwappedFile, IsRefused) {
    auto const own = content(file(GetParam()));
    for (auto const* other : k_all_files) {
        if (std::string_view(other) == GetParam()) continue;
        put(file(GetParam()), content(file(other)));
        expect_refused(file(GetParam()));
    }
    put(file(GetParam()), own);
    expect_opens();
}
INSTANTIATE_TEST_SUITE_P(Files, SwappedFile, testing::ValuesIn(k_all_files), test_name);

// An old copy of one file, the rest as new.
class StaleFile : public FullHome {};

TEST_P(StaleFile, IsRefused) {
    auto const stale = content(file(GetParam()));
    for (int i = 0; i < 2; ++i) {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        for (auto which : {HomeFile::Nvram, HomeFile::Tpm, HomeFile::Disks, HomeFile::Snapshots})
            ASSERT_TRUE((*home)->commit(which, m_tpm));
        ASSERT_TRUE((*home)->commit(HomeFile::Config, encode_vm_config(m_config)));
        ASSERT_TRUE((*home)->commit_file("snapshot-1.state", m_tpm));
        add_image(**home, "snapshot-1.memory", m_tpm);
        for (int event = 0; event < 8; ++event) ASSERT_TRUE((*home)->append_history(HistoryKind::Other, "event"));
    }
    auto const current = content(file(GetParam()));
    put(file(GetParam()), stale);
    expect_refused(file(GetParam()));
    put(file(GetParam()), current);
    expect_opens();
}
INSTANTIATE_TEST_SUITE_P(Files, StaleFile, testing::ValuesIn(k_all_files), test_name);

TEST_F(HomeTest, FolderOrLinkInPlaceOfAFileIsRefused) {
    std::filesystem::remove(file("tpm"));
    std::filesystem::create_directory(file("tpm"));
    auto home = m_host.open("vm");
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::Integrity) << home.error().message();
}

TEST_F(HomeTest, FilesSwappedWithinAHomeAreRefused) {
    auto nvram = content(file("nvram"));
    auto tpm = content(file("tpm"));
    put(file("nvram"), tpm);
    put(file("tpm"), nvram);
    expect_refused(file("nvram"));
    put(file("nvram"), nvram);
    expect_refused(file("tpm"));
}

// Under the very same bundle key, as a careless provider could have it.
TEST_F(HomeTest, FilesOfAnotherHomeAreRefused) {
    ASSERT_TRUE(m_host.create(make_config("other"), m_nvram));
    {
        auto home = m_host.open("other");
        ASSERT_TRUE(home);
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, m_tpm));
    }
    auto other = m_host.location("other").folder();
    for (auto const* name : {"keys", "config", "nvram", "tpm"}) {
        auto own = content(file(name));
        put(file(name), content(other / name));
        expect_refused(file(name));
        put(file(name), own);
    }
    expect_opens();
}

TEST_F(HomeTest, WholeHomeUnderAnotherNameIsRefused) {
    ASSERT_TRUE(m_host.create(make_config("other"), m_nvram));
    auto other = m_host.location("other").folder();
    std::filesystem::remove_all(other);
    std::filesystem::copy(m_host.location("vm").folder(), other);
    auto home = m_host.open("other");
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::Integrity);
    EXPECT_NE(home.error().message().find("'vm'"), std::string::npos) << home.error().message();
}

TEST_F(HomeTest, UnitsMovedWithinAFileAreRefused) {
    auto whole = content(file("nvram"));
    constexpr size_t k_first = 4096;
    constexpr size_t k_second = 8192;
    std::swap_ranges(whole.begin() + k_first, whole.begin() + k_second, whole.begin() + k_second);
    auto const tags = whole.size() - 3 * 32;
    auto at = whole.begin() + static_cast<std::ptrdiff_t>(tags);
    std::swap_ranges(at, at + 32, at + 32);
    put(file("nvram"), whole);
    expect_refused(file("nvram"));
}

TEST_F(HomeTest, OldKeysBesideNewFilesAreRefused) {
    auto old = content(file("keys"));
    {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        for (int i = 0; i < 2; ++i) ASSERT_TRUE((*home)->commit(HomeFile::Tpm, bytes_of("new")));
    }
    put(file("keys"), old);
    expect_refused(file("keys"));
    // Where the host has no record, the manifest still refuses the mixture.
    std::filesystem::remove(record());
    expect_refused(file("tpm"));
}

TEST_F(HomeTest, WholeHomeRolledBackIsRefused) {
    auto old = snapshot();
    {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, bytes_of("new")));
    }
    auto record_now = content(record());
    for (auto const& [path, bytes] : old) put(path, bytes);
    put(record(), record_now);
    expect_refused(file("keys"));
    auto refused = m_host.open("vm");
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("rolled back"), std::string::npos);
    EXPECT_NE(refused.error().message().find("--accept-rollback"), std::string::npos);
}

TEST_F(HomeTest, DamagedHostRecordIsRefused) {
    auto fd = open_file(record(), O_RDWR);
    ASSERT_TRUE(fd);
    auto size = std::filesystem::file_size(record());
    for (uint64_t offset = 0; offset < size; ++offset) {
        flip(fd->get(), offset, record());
        expect_refused(record());
        flip(fd->get(), offset, record());
    }
    expect_opens();
}

TEST_F(HomeTest, UnencryptedHomeInPlaceOfTheEncryptedIsRefused) {
    auto config = make_config("vm", TpmKind::None);
    coffer::tests::TempFolder elsewhere;
    Host attacker(elsewhere.path());
    ASSERT_TRUE(create_home(attacker.location("vm"), config, m_nvram, std::nullopt));
    std::filesystem::remove_all(m_host.location("vm").folder());
    std::filesystem::copy(attacker.location("vm").folder(), m_host.location("vm").folder());
    expect_refused(file("keys"));
    // A single unencrypted file among encrypted ones neither.
    ASSERT_TRUE(m_host.create(make_config("next"), m_nvram));
    auto nvram = m_host.location("next").folder() / "nvram";
    put(nvram, content(attacker.location("vm").folder() / "nvram"));
    auto next = m_host.open("next");
    ASSERT_FALSE(next);
    EXPECT_EQ(next.error().code(), ErrorCode::Integrity);
    EXPECT_NE(next.error().message().find(nvram.native()), std::string::npos);
}

TEST_F(HomeTest, PlantedTpmStateIsRefused) {
    ASSERT_TRUE(m_host.create(make_config("fresh"), m_nvram));
    auto planted = m_host.location("fresh").folder() / "tpm";
    put(planted, content(file("tpm")));
    auto home = m_host.open("fresh");
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::Integrity);
    EXPECT_NE(home.error().message().find(planted.native()), std::string::npos);
}

TEST_F(HomeTest, DamageToAnUnencryptedHomeIsFound) {
    auto config = make_config("plain", TpmKind::None);
    ASSERT_TRUE(create_home(m_host.location("plain"), config, m_nvram, std::nullopt));
    auto path = m_host.location("plain").folder() / "nvram";
    auto fd = open_file(path, O_RDWR);
    ASSERT_TRUE(fd);
    auto size = std::filesystem::file_size(path);
    for (uint64_t offset = 0; offset < size; offset += 97) {
        flip(fd->get(), offset, path);
        auto home = m_host.open("plain");
        ASSERT_FALSE(home) << offset;
        EXPECT_EQ(home.error().code(), ErrorCode::Integrity);
        flip(fd->get(), offset, path);
    }
    EXPECT_TRUE(m_host.open("plain"));
}

} // namespace
} // namespace coffer::vmm::tests
