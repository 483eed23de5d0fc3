// A home is encrypted or decrypted, and stopped, or its disk fails, at every system call of that which writes.
#include "tests/unit/home/crash_fixture.hpp"
#include "vmm/home/home_convert.hpp"
#include "vmm/home/home_lock.hpp"
#include "vmm/home/host_record.hpp"

namespace coffer::vmm::tests {
namespace {

using ConvertHome = HomeTest;

class ConvertCrash : public HomeCrash {
protected:
    void SetUp() override {
        m_plain_config.uuid = *crypto::random_uuid();
        ASSERT_TRUE(create_home(m_host.location("plain"), m_plain_config, m_nvram, std::nullopt));
        HomeCrash::SetUp();
    }
    int encrypt() {
        auto home = m_host.open("plain");
        if (!home) return 2;
        return convert_home(m_host.location("plain"), **home, with_tpm(), m_tpm, m_host.seal(), HistoryKind::TpmAdded)
                   ? 0
                   : 1;
    }
    int decrypt() {
        auto home = m_host.open("vm");
        if (!home) return 2;
        return convert_home(m_host.location("vm"), **home, without_tpm(), {}, std::nullopt, HistoryKind::TpmRemoved)
                   ? 0
                   : 1;
    }
    VmConfig with_tpm() const {
        auto config = m_plain_config;
        config.tpm = TpmKind::Crb;
        return config;
    }
    VmConfig without_tpm() const {
        auto config = m_config;
        config.tpm = TpmKind::None;
        return config;
    }
    // The home is one of the two, whole; whether it is the encrypted one. Nothing is left beside it.
    bool expect_one_of(std::string const& name, VmConfig const& encrypted, VmConfig const& plain) {
        bool is_encrypted = false;
        {
            auto home = m_host.open(name);
            EXPECT_TRUE(home) << home.error().message();
            if (!home) return false;
            is_encrypted = (*home)->encrypted();
            EXPECT_EQ((*home)->config(), is_encrypted ? encrypted : plain);
            EXPECT_EQ(*(*home)->load(HomeFile::Nvram), m_nvram);
            EXPECT_EQ((*home)->has(HomeFile::Tpm), is_encrypted);
            if (is_encrypted) {
                EXPECT_EQ(*(*home)->load(HomeFile::Tpm), m_tpm);
            }
            EXPECT_FALSE(std::filesystem::exists(m_host.root().vms() / ("." + name + ".new")));
        }
        auto again = m_host.open(name);
        EXPECT_TRUE(again) << again.error().message();
        EXPECT_TRUE(again && (*again)->encrypted() == is_encrypted && !(*again)->first_seen());
        return is_encrypted;
    }

    VmConfig m_plain_config = make_config("plain", TpmKind::None);
};

TEST_F(ConvertCrash, StoppedAnywhereInEncrypting) {
    unsigned stops = 0;
    unsigned at_new = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        auto run = run_traced([&] { return encrypt(); }, {{at, Fault::Kill}});
        bool const encrypted = expect_one_of("plain", with_tpm(), m_plain_config);
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            EXPECT_TRUE(encrypted);
            break;
        }
        ++stops;
        at_new += encrypted ? 1 : 0;
    }
    EXPECT_GE(stops, 20U);
    EXPECT_GT(at_new, 0U);
    EXPECT_LT(at_new, stops);
    RecordProperty("stop_points", static_cast<int>(stops));
}

TEST_F(ConvertCrash, StoppedAnywhereInDecrypting) {
    unsigned stops = 0;
    unsigned at_new = 0;
    for (unsigned at = 0; at < k_most_writes; ++at) {
        rewind();
        auto run = run_traced([&] { return decrypt(); }, {{at, Fault::Kill}});
        bool const encrypted = expect_one_of("vm", m_config, without_tpm());
        if (!run.killed) {
            EXPECT_EQ(run.exit_code, 0);
            EXPECT_FALSE(encrypted);
            break;
        }
        ++stops;
        at_new += encrypted ? 0 : 1;
    }
    EXPECT_GE(stops, 20U);
    EXPECT_GT(at_new, 0U);
    EXPECT_LT(at_new, stops);
    RecordProperty("stop_points", static_cast<int>(stops));
}

class ConvertOnFailingDisk : public ConvertCrash, public testing::WithParamInterface<Fault> {};

TEST_P(ConvertOnFailingDisk, IsAnErrorOrDone) {
    for (bool encrypting : {true, false}) {
        unsigned errors = 0;
        for (unsigned at = 0; at < k_most_writes; ++at) {
            rewind();
            auto run = run_traced([&] { return encrypting ? encrypt() : decrypt(); }, {{at, GetParam()}});
            ASSERT_FALSE(run.killed);
            bool const encrypted = encrypting ? expect_one_of("plain", with_tpm(), m_plain_config)
                                              : expect_one_of("vm", m_config, without_tpm());
            if (run.exit_code == 0) {
                EXPECT_EQ(encrypted, encrypting) << at;
            }
            errors += run.exit_code != 0 ? 1 : 0;
            if (at >= run.writes) break;
        }
        EXPECT_GE(errors, 20U);
    }
}
INSTANTIATE_TEST_SUITE_P(Faults, ConvertOnFailingDisk, testing::Values(Fault::Eio, Fault::Enospc));

// Encrypted, decrypted and encrypted again: none of the earlier homes can be put back.
TEST_F(ConvertCrash, EarlierHomesAreRefused) {
    namespace fs = std::filesystem;
    auto const folder = m_host.location("plain").folder();
    auto keep = [&](char const* name) { fs::copy(folder, m_beside.path() / name, fs::copy_options::recursive); };
    auto put_back = [&](char const* name) {
        fs::remove_all(folder);
        fs::copy(m_beside.path() / name, folder, fs::copy_options::recursive);
    };
    auto decrypt_plain = [&] {
        auto home = m_host.open("plain");
        return home && convert_home(m_host.location("plain"), **home, m_plain_config, {}, std::nullopt,
                                    HistoryKind::TpmRemoved);
    };
    auto refused = [&] {
        auto home = m_host.open("plain");
        return !home && home.error().code() == ErrorCode::Integrity;
    };
    keep("plain");
    ASSERT_EQ(encrypt(), 0);
    keep("encrypted");
    put_back("plain");
    EXPECT_TRUE(refused());
    put_back("encrypted");
    ASSERT_TRUE(decrypt_plain());
    keep("plain again");
    put_back("encrypted");
    EXPECT_TRUE(refused());
    put_back("plain again");
    ASSERT_EQ(encrypt(), 0);
    keep("encrypted again");
    put_back("encrypted");
    EXPECT_TRUE(refused());
    put_back("plain again");
    EXPECT_TRUE(refused());
    put_back("encrypted again");
    EXPECT_FALSE(refused());
}

TEST_F(ConvertHome, NewKeysAndTheSameVm) {
    auto const before = content(file("keys"));
    {
        auto home = m_host.open("vm");
        auto config = m_config;
        config.tpm = TpmKind::None;
        ASSERT_TRUE(convert_home(m_host.location("vm"), **home, config, {}, std::nullopt, HistoryKind::TpmRemoved));
    }
    EXPECT_FALSE(std::filesystem::exists(file("keys")));
    EXPECT_FALSE(std::filesystem::exists(file("tpm")));
    auto summary = summarize_home(m_host.location("vm"));
    ASSERT_TRUE(summary);
    EXPECT_FALSE(summary->encrypted);
    EXPECT_EQ(summary->uuid, m_config.uuid);
    auto home = m_host.open("vm");
    ASSERT_TRUE(home);
    ASSERT_TRUE(convert_home(m_host.location("vm"), **home, m_config, m_tpm, m_host.seal(), HistoryKind::TpmAdded));
    EXPECT_NE(content(file("keys")), before);
    // The lock is that of the home which is there now.
    home->reset();
    expect_opens();
}

// While a home is converted, nobody else gets at it, under the old folder or the new one.
TEST_F(ConvertHome, HomeThatRunsIsNotSwept) {
    auto making = m_host.root().vms() / ".vm.new";
    std::filesystem::create_directory(making);
    put(making / "nvram", bytes_of("left by a crash"));
    {
        auto lock = HomeLock::acquire(making);
        ASSERT_TRUE(lock);
        expect_opens();
        EXPECT_TRUE(std::filesystem::exists(making / "nvram")) << "another process is making a home of this name";
    }
    expect_opens();
    EXPECT_FALSE(std::filesystem::exists(making));
}

} // namespace
} // namespace coffer::vmm::tests
