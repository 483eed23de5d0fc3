// A home's life: made, opened, committed to, locked, removed.
#include <map>
#include <thread>

#include <signal.h>
#include <sys/wait.h>

#include "tests/unit/home/home_fixture.hpp"

namespace coffer::vmm::tests {
namespace {

TEST_F(HomeTest, GivesBackWhatWasCommitted) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_TRUE((*home)->encrypted());
    EXPECT_EQ((*home)->config(), m_config);
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), m_nvram);
    EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
    auto changed = bytes_of("changed");
    ASSERT_TRUE((*home)->store(HomeFile::Nvram).commit(changed));
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), changed);
    home->reset();
    auto again = m_host.open("vm");
    ASSERT_TRUE(again) << again.error().message();
    EXPECT_EQ(*(*again)->load(HomeFile::Nvram), changed);
    EXPECT_EQ(*(*again)->load(HomeFile::Tpm), m_tpm);
}

TEST_F(HomeTest, ContentOfEverySizeAroundAUnitSurvives) {
    for (size_t size : {size_t{0}, size_t{1}, size_t{4095}, size_t{4096}, size_t{4097}, size_t{540'672}}) {
        ByteVector nvram(size, std::byte{0x11});
        if (size > 0) nvram.back() = std::byte{0x22};
        {
            auto home = m_host.open("vm");
            ASSERT_TRUE(home) << home.error().message();
            ASSERT_TRUE((*home)->commit(HomeFile::Nvram, nvram));
        }
        auto home = m_host.open("vm");
        ASSERT_TRUE(home) << home.error().message();
        EXPECT_EQ(*(*home)->load(HomeFile::Nvram), nvram);
    }
}

TEST_F(HomeTest, ManifestSaysWhetherATpmWasEverWritten) {
    ASSERT_TRUE(m_host.create(make_config("fresh"), m_nvram));
    auto home = m_host.open("fresh");
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_FALSE((*home)->has(HomeFile::Tpm));
    auto loaded = (*home)->load(HomeFile::Tpm);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code(), ErrorCode::NotFound);
    ASSERT_TRUE((*home)->commit(HomeFile::Tpm, m_tpm));
    EXPECT_TRUE((*home)->has(HomeFile::Tpm));
}

TEST_F(HomeTest, TooMuchContentIsRefusedAndTheOldStays) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    ByteVector large((size_t{64} << 20) + 1);
    auto committed = (*home)->commit(HomeFile::Nvram, large);
    ASSERT_FALSE(committed);
    EXPECT_EQ(committed.error().code(), ErrorCode::InvalidArgument);
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), m_nvram);
}

TEST_F(HomeTest, ConfigurationOfAnotherVmIsNotCommitted) {
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    auto other = m_config;
    other.uuid = *crypto::random_uuid();
    EXPECT_FALSE((*home)->commit(HomeFile::Config, encode_vm_config(other)));
    other = m_config;
    other.cpus = 7;
    ASSERT_TRUE((*home)->commit(HomeFile::Config, encode_vm_config(other)));
    EXPECT_EQ((*home)->config().cpus, 7U);
}

TEST_F(HomeTest, AnotherKeyIsRefused) {
    auto location = m_host.location("vm");
    auto home =
        open_home(location, HomeAccess::Writer, [](BundleHeader const&) { return crypto::BundleKey::random(); });
    ASSERT_FALSE(home);
    EXPECT_EQ(home.error().code(), ErrorCode::Integrity);
    EXPECT_NE(home.error().message().find(file("keys").native()), std::string::npos);
}

TEST_F(HomeTest, NothingInTheHomeIsPlaintextButWhatTheFormatSays) {
    std::string all;
    for (auto const& [path, bytes] : snapshot())
        for (std::byte b : bytes) all += static_cast<char>(b);
    EXPECT_EQ(all.find("planted secret"), std::string::npos);
    EXPECT_EQ(all.find("secret-disk-name"), std::string::npos);
    EXPECT_EQ(all.find("OVMF_CODE"), std::string::npos);
    EXPECT_EQ(all.find(std::string(64, '\x5A')), std::string::npos);
    std::string key;
    for (std::byte b : m_host.key().expose()) key += static_cast<char>(b);
    EXPECT_EQ(all.find(key), std::string::npos);
    // Equal units and equal files do not show.
    auto nvram = content(file("nvram"));
    Bytes const units = Bytes(nvram).subspan(4096);
    EXPECT_FALSE(std::equal(units.begin(), units.begin() + 4096, units.begin() + 4096));
}

TEST_F(HomeTest, NamesSizesGenerationsAndTimesAreReadableWithoutKeys) {
    auto summary = summarize_home(m_host.location("vm"));
    ASSERT_TRUE(summary) << summary.error().message();
    EXPECT_EQ(summary->name, "vm");
    EXPECT_EQ(summary->uuid, m_config.uuid);
    EXPECT_TRUE(summary->encrypted);
    EXPECT_FALSE(summary->provider.is_nil());
    EXPECT_EQ(summary->key_id, "1/some-key");
    EXPECT_EQ(summary->sequence, 2U);
    ASSERT_EQ(summary->files.size(), 3U);
    EXPECT_EQ(summary->files[1].name, "nvram");
    EXPECT_EQ(summary->files[1].content_size, m_nvram.size());
    EXPECT_EQ(summary->files[1].generation, 1U);
    EXPECT_GT(summary->files[1].written, 1'600'000'000);
    EXPECT_FALSE(summary->running);
}

TEST_F(HomeTest, FilesAndFoldersAreTheOwnersAlone) {
    for (auto const& entry : std::filesystem::recursive_directory_iterator(m_folder.path())) {
        auto others = std::filesystem::perms::group_all | std::filesystem::perms::others_all;
        EXPECT_EQ(entry.status().permissions() & others, std::filesystem::perms::none) << entry.path();
    }
}

TEST_F(HomeTest, ReadOnlySessionsWriteNothing) {
    auto before = snapshot();
    auto home = m_host.open("vm", HomeAccess::ReadOnly);
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_FALSE((*home)->commit(HomeFile::Nvram, m_tpm));
    EXPECT_EQ(snapshot(), before);
}

TEST_F(HomeTest, OneWriterAtATime) {
    auto first = m_host.open("vm");
    ASSERT_TRUE(first);
    auto second = m_host.open("vm");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), ErrorCode::Busy);
    EXPECT_NE(second.error().message().find(std::to_string(::getpid())), std::string::npos);
    EXPECT_EQ(*home_user(m_host.location("vm")), std::optional(::getpid()));
    EXPECT_FALSE(remove_home(m_host.location("vm")));
    EXPECT_TRUE(m_host.open("vm", HomeAccess::ReadOnly));
    first->reset();
    EXPECT_FALSE(home_user(m_host.location("vm"))->has_value());
    EXPECT_TRUE(m_host.open("vm"));
}

TEST_F(HomeTest, LockOfAKilledProcessIsFree) {
    std::array<int, 2> ready{};
    ASSERT_EQ(::pipe(ready.data()), 0);
    pid_t child = ::fork();
    if (child == 0) {
        auto home = m_host.open("vm");
        [[maybe_unused]] auto written = ::write(ready[1], home ? "y" : "n", 1);
        ::pause();
        ::_exit(0);
    }
    char opened = 0;
    ASSERT_EQ(::read(ready[0], &opened, 1), 1);
    EXPECT_EQ(opened, 'y');
    auto busy = m_host.open("vm");
    ASSERT_FALSE(busy);
    EXPECT_NE(busy.error().message().find(std::to_string(child)), std::string::npos);
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(m_host.open("vm"));
    ::close(ready[0]);
    ::close(ready[1]);
}

TEST_F(HomeTest, CommitsOfTwoThreadsBothArrive) {
    ByteVector last;
    {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home);
        auto work = [&](HomeFile which) {
            for (int i = 0; i < 25; ++i) {
                auto bytes = bytes_of(fmt::format("writing {}", i));
                EXPECT_TRUE((*home)->commit(which, bytes));
            }
        };
        std::thread other(work, HomeFile::Tpm);
        work(HomeFile::Nvram);
        other.join();
    }
    auto home = m_host.open("vm");
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_EQ(*(*home)->load(HomeFile::Tpm), bytes_of("writing 24"));
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), bytes_of("writing 24"));
}

TEST_F(HomeTest, NameInUseIsRefused) {
    auto created = m_host.create(make_config("vm"), m_nvram);
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code(), ErrorCode::AlreadyExists);
    expect_opens();
}

TEST_F(HomeTest, ListShowsHomesAndNothingElse) {
    ASSERT_TRUE(m_host.create(make_config("another"), m_nvram));
    std::filesystem::create_directory(m_host.root().vms() / ".half.new");
    put(m_host.root().vms() / "stray-file", m_tpm);
    EXPECT_EQ(*list_homes(m_host.root()), (std::vector<std::string>{"another", "vm"}));
}

TEST_F(HomeTest, RemoveTakesHomeAndRecordAndTheNameIsFree) {
    ASSERT_TRUE(remove_home(m_host.location("vm")));
    EXPECT_TRUE(list_homes(m_host.root())->empty());
    EXPECT_FALSE(std::filesystem::exists(record()));
    auto gone = m_host.open("vm");
    ASSERT_FALSE(gone);
    EXPECT_EQ(gone.error().code(), ErrorCode::NotFound);
    EXPECT_TRUE(m_host.create(make_config("vm"), m_nvram));
}

TEST_F(HomeTest, RemainsOfACrashedCreateAreReplaced) {
    auto making = m_host.root().vms() / ".next.new";
    std::filesystem::create_directory(making);
    put(making / "keys", m_tpm);
    put(making / "tpm", m_tpm);
    ASSERT_TRUE(m_host.create(make_config("next"), m_nvram));
    auto home = m_host.open("next");
    ASSERT_TRUE(home) << home.error().message();
    EXPECT_FALSE((*home)->has(HomeFile::Tpm));
}

TEST_F(HomeTest, UnencryptedHomeWorksAndSaysSo) {
    auto config = make_config("plain", TpmKind::None);
    ASSERT_TRUE(create_home(m_host.location("plain"), config, m_nvram, std::nullopt));
    {
        auto home = m_host.open("plain");
        ASSERT_TRUE(home) << home.error().message();
        EXPECT_FALSE((*home)->encrypted());
        EXPECT_EQ((*home)->config(), config);
        EXPECT_EQ(*(*home)->load(HomeFile::Nvram), m_nvram);
        ASSERT_TRUE((*home)->commit(HomeFile::Nvram, m_tpm));
        EXPECT_FALSE((*home)->commit(HomeFile::Tpm, m_tpm));
    }
    auto home = m_host.open("plain");
    ASSERT_TRUE(home);
    EXPECT_EQ(*(*home)->load(HomeFile::Nvram), m_tpm);
    auto summary = summarize_home(m_host.location("plain"));
    ASSERT_TRUE(summary);
    EXPECT_FALSE(summary->encrypted);
    EXPECT_EQ(summary->uuid, config.uuid);
}

TEST_F(HomeTest, UnencryptedHomeHasNoTpm) {
    auto config = make_config("plain", TpmKind::Crb);
    auto created = create_home(m_host.location("plain"), config, m_nvram, std::nullopt);
    ASSERT_FALSE(created);
    EXPECT_EQ(created.error().code(), ErrorCode::InvalidArgument);
}

TEST(VmConfig, RoundTripAndLimits) {
    auto config = make_config("a.b-c_1");
    auto decoded = decode_vm_config(encode_vm_config(config));
    ASSERT_TRUE(decoded);
    EXPECT_EQ(*decoded, config);
    auto refused = [](auto&& change) {
        auto changed = make_config("x");
        change(changed);
        return !decode_vm_config(encode_vm_config(changed)).has_value();
    };
    EXPECT_TRUE(refused([](auto& c) { c.name = "../evil"; }));
    EXPECT_TRUE(refused([](auto& c) { c.name = ".hidden"; }));
    EXPECT_TRUE(refused([](auto& c) { c.name = ""; }));
    EXPECT_TRUE(refused([](auto& c) { c.name = std::string(65, 'a'); }));
    EXPECT_TRUE(refused([](auto& c) { c.memory = 0; }));
    EXPECT_TRUE(refused([](auto& c) { c.memory += 1; }));
    EXPECT_TRUE(refused([](auto& c) { c.cpus = 0; }));
    EXPECT_TRUE(refused([](auto& c) { c.cpus = 256; }));
    EXPECT_TRUE(refused([](auto& c) { c.tpm = static_cast<TpmKind>(4); }));
    EXPECT_TRUE(refused([](auto& c) { c.disks = {{"relative.img", false}}; }));
    EXPECT_TRUE(refused([](auto& c) { c.disks.assign(17, {"/x", false}); }));
    EXPECT_TRUE(refused([](auto& c) { c.firmware_code = ""; }));
    // Cut anywhere, it is refused, or only fields that may be absent are gone.
    auto bytes = encode_vm_config(config);
    for (size_t size = 0; size < bytes.size(); ++size) {
        auto cut = decode_vm_config(Bytes(bytes).first(size));
        if (cut) {
            EXPECT_EQ(cut->firmware_code, config.firmware_code) << size;
        }
    }
}

TEST(HomeRoot, TwoRootsAreTwoHosts) {
    coffer::tests::TempFolder folder;
    auto one = HomeRoot::resolve(folder.path() / "one");
    auto same = HomeRoot::resolve(folder.path() / "two" / ".." / "one/");
    auto other = HomeRoot::resolve(folder.path() / "other");
    ASSERT_TRUE(one && same && other);
    EXPECT_EQ(one->root, same->root);
    EXPECT_EQ(one->state, same->state);
    EXPECT_NE(one->state, other->state);
    EXPECT_TRUE(one->root.is_absolute());
    EXPECT_NE(one->state.native().find("coffer"), std::string::npos);
}

} // namespace
} // namespace coffer::vmm::tests
