// Changes of a native provider are stopped at every system call that writes: what opened before opens afterwards, and
// the change can be made again.
#include <gtest/gtest.h>

#include "base/file.hpp"
#include "keyprovider/native/backup_file.hpp"
#include "keyprovider/native/native_provider.hpp"
#include "tests/support/saved_folder.hpp"
#include "tests/support/syscall_tracer.hpp"
#include "tests/unit/keyprovider/native_fixture.hpp"

namespace coffer::tests {
namespace {

constexpr unsigned k_most_writes = 400; // no operation comes near; a loop that does not end fails

class NativeCrash : public NativeTest {
protected:
    struct Wrapped {
        ByteVector key;
        KeyId id;
        WrappedKey wrapped;
    };

    void SetUp() override {
        m_info = add();
        m_old = wrap(m_registry);
        ASSERT_TRUE(m_registry.backup(m_info.id, m_first_backup, false, m_password, nobody_asks));
        ASSERT_TRUE(m_registry.rotate(m_info.id, nobody_asks));
        m_new = wrap(m_registry);
        ASSERT_TRUE(m_registry.backup(m_info.id, m_second_backup, false, m_password, nobody_asks));
        m_saved.save();
    }
    std::optional<Wrapped> wrap(ProviderRegistry const& registry) {
        auto provider = registry.open(m_info.id, nobody_asks);
        auto kek = (*provider)->create_kek("vm");
        auto key = crypto::BundleKey::random();
        auto wrapped = (*provider)->wrap(*kek, *key);
        EXPECT_TRUE(wrapped) << wrapped.error().message();
        return Wrapped{to_vector(key->expose()), *kek, *wrapped};
    }
    bool opens(ProviderRegistry const& registry, Wrapped const& wrapped) {
        auto provider = registry.open(m_info.id, nobody_asks);
        EXPECT_TRUE(provider) << provider.error().message();
        auto key = (*provider)->unwrap(wrapped.id, wrapped.wrapped);
        return key && to_vector(key->expose()) == wrapped.key;
    }
    Result<Restored> restore(std::filesystem::path const& file) {
        return m_other.restore(file, {}, m_password, {nobody_asks, nobody_asks});
    }
    // Runs `work` until it is not stopped any more, and `check(done)` after each time. How often it was stopped.
    template <class Work, class Check>
    unsigned stop_everywhere(Work work, Check check) {
        for (unsigned at = 0; at < k_most_writes; ++at) {
            m_saved.rewind();
            auto const run = run_traced([&] { return work() ? 0 : 1; }, {{at, Fault::Kill}});
            SCOPED_TRACE(at);
            if (!run.killed) {
                EXPECT_EQ(run.exit_code, 0);
            }
            check(!run.killed);
            if (!run.killed || testing::Test::HasFailure()) return at;
        }
        ADD_FAILURE() << "it never ended";
        return 0;
    }

    SavedFolder m_saved{m_folder.path()};
    ProviderRegistry m_other{m_folder.path() / "other host"};
    std::filesystem::path m_first_backup = m_folder.path() / "first.p12";
    std::filesystem::path m_second_backup = m_folder.path() / "second.p12";
    crypto::SecretBytes m_password = crypto::SecretBytes::copy_of(as_bytes("a password"));
    ProviderInfo m_info;
    std::optional<Wrapped> m_old;
    std::optional<Wrapped> m_new;
};

TEST_F(NativeCrash, Rotate) {
    unsigned rotated = 0;
    auto stops = stop_everywhere([&] { return m_registry.rotate(m_info.id, nobody_asks).has_value(); },
                                 [&](bool done) {
                                     auto info = m_registry.find(m_info.id);
                                     ASSERT_TRUE(info) << info.error().message();
                                     ASSERT_TRUE(info->kdk_version == 2 || info->kdk_version == 3);
                                     if (info->kdk_version == 3) ++rotated;
                                     if (done) {
                                         EXPECT_EQ(info->kdk_version, 3U);
                                     }
                                     EXPECT_TRUE(opens(m_registry, *m_old));
                                     EXPECT_TRUE(opens(m_registry, *m_new));
                                     auto now = wrap(m_registry);
                                     auto again = m_registry.rotate(m_info.id, nobody_asks);
                                     ASSERT_TRUE(again) << again.error().message();
                                     EXPECT_TRUE(opens(m_registry, *now));
                                     EXPECT_TRUE(opens(m_registry, *wrap(m_registry)));
                                 });
    EXPECT_GE(stops, 8U); // lock, and two files of open, write, sync, rename, sync each
    EXPECT_GT(rotated, 0U);
    EXPECT_LT(rotated, stops);
}

TEST_F(NativeCrash, Prune) {
    auto stops = stop_everywhere([&] { return m_registry.remove_kdk(*m_registry.find(m_info.id), 1).has_value(); },
                                 [&](bool done) {
                                     EXPECT_TRUE(opens(m_registry, *m_new));
                                     if (done) {
                                         EXPECT_FALSE(opens(m_registry, *m_old));
                                     }
                                     ASSERT_TRUE(m_registry.remove_kdk(*m_registry.find(m_info.id), 1));
                                     EXPECT_EQ(*m_registry.kdk_versions(m_info.id), std::vector<uint32_t>{2});
                                 });
    EXPECT_GE(stops, 2U);
}

TEST_F(NativeCrash, RestoreOfAProviderThatIsNotThere) {
    unsigned absent = 0;
    auto stops = stop_everywhere([&] { return restore(m_second_backup).has_value(); },
                                 [&](bool done) {
                                     auto listed = m_other.list();
                                     ASSERT_TRUE(listed) << listed.error().message();
                                     if (listed->empty()) {
                                         EXPECT_FALSE(done);
                                         ++absent;
                                         auto again = restore(m_second_backup);
                                         ASSERT_TRUE(again) << again.error().message();
                                     }
                                     EXPECT_EQ(*m_other.kdk_versions(m_info.id), (std::vector<uint32_t>{1, 2}));
                                     EXPECT_TRUE(opens(m_other, *m_old));
                                     EXPECT_TRUE(opens(m_other, *m_new));
                                 });
    EXPECT_GE(stops, 14U);
    EXPECT_GT(absent, 0U);
    EXPECT_LT(absent, stops);
}

TEST_F(NativeCrash, RestoreIntoAProviderThatIsThere) {
    ASSERT_TRUE(restore(m_first_backup));
    m_saved.save();
    auto stops = stop_everywhere([&] { return restore(m_second_backup).has_value(); },
                                 [&](bool done) {
                                     EXPECT_TRUE(opens(m_other, *m_old));
                                     auto info = m_other.find(m_info.id);
                                     ASSERT_TRUE(info) << info.error().message();
                                     if (done || info->kdk_version == 2) {
                                         EXPECT_TRUE(opens(m_other, *m_new));
                                     }
                                     if (done) return;
                                     // Rotating instead of restoring once more gives no number of the backup to another
                                     // key.
                                     auto rotated = m_other.rotate(m_info.id, nobody_asks);
                                     ASSERT_TRUE(rotated) << rotated.error().message();
                                     bool const arrived = m_other.kdk_versions(m_info.id)->size() == 3;
                                     EXPECT_EQ(rotated->kdk_version, arrived ? 3U : 2U);
                                 });
    EXPECT_GE(stops, 8U);
}

TEST_F(NativeCrash, Backup) {
    auto const file = m_folder.path() / "third.p12";
    std::filesystem::remove(m_first_backup);
    std::filesystem::remove(m_second_backup);
    ASSERT_TRUE(m_registry.rotate(m_info.id, nobody_asks));
    m_saved.save();
    unsigned there = 0;
    auto stops =
        stop_everywhere([&] { return m_registry.backup(m_info.id, file, false, m_password, nobody_asks).has_value(); },
                        [&](bool done) {
                            auto info = m_registry.find(m_info.id);
                            ASSERT_TRUE(info) << info.error().message();
                            if (done) {
                                EXPECT_FALSE(info->lacks_backup());
                            }
                            auto content = read_file(file, crypto::k_pkcs12_max_file);
                            // A provider is not said to be backed up where there is no whole backup.
                            if (!info->lacks_backup()) {
                                ASSERT_TRUE(content);
                            }
                            if (content) {
                                ++there;
                                auto opened = open_backup(*content, m_password);
                                ASSERT_TRUE(opened) << opened.error().message();
                                EXPECT_EQ(opened->keys.size(), 3U);
                            }
                        });
    EXPECT_GE(stops, 8U);
    EXPECT_GT(there, 0U);
    EXPECT_LT(there, stops);
}

} // namespace
} // namespace coffer::tests
