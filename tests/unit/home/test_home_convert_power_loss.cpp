// Power fails while a home is encrypted or decrypted, restored from a backup, or copied with a disk
// (tests/support/crash_model.hpp).
#include "tests/support/crash_model.hpp"
#include "tests/unit/home/home_fixture.hpp"
#include "vmm/home/backup.hpp"
#include "vmm/home/disk_copies.hpp"
#include "vmm/home/home_convert.hpp"

namespace coffer::vmm::tests {
namespace {

using coffer::tests::CrashModel;

class ConvertPowerLoss : public HomeTest {
protected:
    CrashModel make_model(CrashModel::Promise promise = CrashModel::Promise::All) {
        std::filesystem::create_directories(disks());
        return CrashModel({m_folder.path() / "root", m_folder.path() / "state", disks()}, promise);
    }
    std::filesystem::path disks() const { return m_folder.path() / "disks"; }
    int convert(std::string const& name, VmConfig const& config, bool encrypt) {
        auto home = m_host.open(name);
        if (!home) return 2;
        auto seal = encrypt ? std::optional(m_host.seal()) : std::nullopt;
        auto done = convert_home(m_host.location(name), **home, config, encrypt ? Bytes(m_tpm) : Bytes(),
                                 std::move(seal), encrypt ? HistoryKind::TpmAdded : HistoryKind::TpmRemoved);
        return done ? 0 : 1;
    }
    // What is wrong in the first state where the home is neither of the two, and how often it was the new one.
    std::string convert_and_check(CrashModel& model, std::string const& name, VmConfig const& before, bool encrypt,
                                  unsigned& at_new) {
        auto config = before;
        config.tpm = encrypt ? TpmKind::Crb : TpmKind::None;
        if (model.record([&] { return convert(name, config, encrypt); }) != 0) return "it fails";
        std::string fault;
        auto const tried = model.for_each_state([&](CrashModel::State const& state) {
            for (int time = 0; time < 2 && fault.empty(); ++time) {
                auto home = m_host.open(name);
                if (!home) {
                    fault = fmt::format("{}: {}", state.what, home.error().message());
                    return false;
                }
                bool const is_new = (*home)->encrypted() == encrypt;
                auto nvram = (*home)->load(HomeFile::Nvram);
                bool sound = (*home)->config() == (is_new ? config : before) && nvram && *nvram == m_nvram;
                if ((*home)->encrypted()) {
                    auto tpm = (*home)->load(HomeFile::Tpm);
                    sound = sound && tpm && *tpm == m_tpm;
                }
                if (!sound || (state.finished && !is_new)) fault = fmt::format("{}: content", state.what);
                at_new += is_new && time == 0 ? 1U : 0U;
            }
            return fault.empty();
        });
        if (fault.empty()) fmt::print("{} system calls, {} states\n", model.calls(), tried);
        return fault;
    }
    VmConfig make_plain() {
        auto config = make_config("plain", TpmKind::None);
        EXPECT_TRUE(create_home(m_host.location("plain"), config, m_nvram, std::nullopt));
        return config;
    }
};

TEST_F(ConvertPowerLoss, AnEncryptedHomeIsTheOldOrTheNewOne) {
    auto const plain = make_plain();
    auto model = make_model();
    unsigned at_new = 0;
    EXPECT_EQ(convert_and_check(model, "plain", plain, true, at_new), "");
    EXPECT_GT(at_new, 0U);
}

TEST_F(ConvertPowerLoss, ADecryptedHomeIsTheOldOrTheNewOne) {
    auto model = make_model();
    unsigned at_new = 0;
    EXPECT_EQ(convert_and_check(model, "vm", m_config, false, at_new), "");
    EXPECT_GT(at_new, 0U);
}

TEST_F(ConvertPowerLoss, WithoutSyncOfFilesHomesAreLost) {
    auto model = make_model(CrashModel::Promise::NoFileSync);
    unsigned at_new = 0;
    EXPECT_NE(convert_and_check(model, "vm", m_config, false, at_new), "");
}

TEST_F(ConvertPowerLoss, ARestoredHomeIsThereOrNot) {
    auto const file = m_folder.path() / "vm.backup";
    {
        auto home = m_host.open("vm");
        auto fd = open_file(file, O_RDWR | O_CREAT | O_EXCL);
        ASSERT_TRUE(home && fd && write_backup(**home, fd->get(), file, {}));
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, bytes_of("newer")));
    }
    std::filesystem::remove_all(m_host.location("vm").folder());
    auto restore = [&]() -> Result<void> {
        auto backup = TRY(BackupFile::open(file));
        auto content =
            TRY(backup.unlock([&](BundleHeader const&) -> Result<crypto::BundleKey> { return copy_of(m_host.key()); }));
        HomeContents contents;
        contents.nvram = content.nvram;
        contents.tpm = content.tpm;
        contents.history = content.history;
        contents.event = HistoryKind::Restored;
        return restore_home(m_host.location("vm"), content.config, contents, std::move(content.seal),
                            backup.header().sequence);
    };
    auto model = make_model();
    ASSERT_EQ(model.record([&] { return restore() ? 0 : 1; }), 0);
    std::string fault;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("vm");
        if (!home && (home.error().code() != ErrorCode::NotFound || state.finished))
            fault = fmt::format("{}: {}", state.what, home.error().message());
        if (!home && fault.empty()) {
            if (auto again = restore(); !again) fault = fmt::format("{}: {}", state.what, again.error().message());
            home = m_host.open("vm");
        }
        if (fault.empty() && (!home || *(*home)->load(HomeFile::Tpm) != m_tpm))
            fault = fmt::format("{}: content", state.what);
        return fault.empty();
    });
    EXPECT_EQ(fault, "");
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

// Where the new VM is there, its disk is too, whole.
TEST_F(ConvertPowerLoss, AClonesDiskIsThereWhereTheCloneIs) {
    auto const disk = m_folder.path() / "source.img";
    ByteVector const content_of_disk(9000, std::byte{0xD1});
    put(disk, content_of_disk);
    auto const copy = disks() / "new-source.img";
    auto config = make_config("new");
    config.disks = {{disk.native(), false}};
    auto clone = [&]() -> Result<void> {
        auto copies = TRY(DiskCopies::plan(config.disks, "new", disks()));
        TRY(copies.copy([](uint64_t) { return Result<void>(); }));
        TRY(copies.place());
        auto made = config;
        made.disks = copies.disks();
        TRY(create_home(m_host.location("new"), made, m_nvram, m_host.seal(), m_tpm));
        copies.keep();
        return {};
    };
    auto model = make_model();
    ASSERT_EQ(model.record([&] { return clone() ? 0 : 1; }), 0);
    std::string fault;
    auto const tried = model.for_each_state([&](CrashModel::State const& state) {
        auto home = m_host.open("new");
        if (home && (content(copy) != content_of_disk || *(*home)->load(HomeFile::Tpm) != m_tpm))
            fault = fmt::format("{}: content", state.what);
        if (!home && (home.error().code() != ErrorCode::NotFound || state.finished))
            fault = fmt::format("{}: {}", state.what, home.error().message());
        return fault.empty();
    });
    EXPECT_EQ(fault, "");
    fmt::print("{} system calls, {} states\n", model.calls(), tried);
}

} // namespace
} // namespace coffer::vmm::tests
