#include "tests/unit/home/crash_fixture.hpp"
#include "vmm/home/settings.hpp"

namespace coffer::vmm::tests {
namespace {

TEST(Settings, HaveDefaultsWithoutAFile) {
    coffer::tests::TempFolder folder;
    auto settings = Settings::load({folder.path() / "none", folder.path() / "state"});
    ASSERT_TRUE(settings);
    EXPECT_EQ(settings->clone_tpm_policy(), TpmPolicy::Copy);
    EXPECT_EQ(*settings->get(k_clone_tpm_policy), "copy");
    EXPECT_FALSE(settings->is_set(k_clone_tpm_policy));
}

TEST(Settings, KeepWhatIsSet) {
    coffer::tests::TempFolder folder;
    HomeRoot const root{folder.path() / "root", folder.path() / "state"};
    Settings settings;
    ASSERT_TRUE(settings.set(k_clone_tpm_policy, "replace"));
    ASSERT_TRUE(settings.save(root));
    auto loaded = Settings::load(root);
    ASSERT_TRUE(loaded);
    EXPECT_EQ(loaded->clone_tpm_policy(), TpmPolicy::Replace);
    ASSERT_TRUE(loaded->unset(k_clone_tpm_policy));
    ASSERT_TRUE(loaded->save(root));
    EXPECT_EQ(Settings::load(root)->clone_tpm_policy(), TpmPolicy::Copy);
}

TEST(Settings, RefuseWhatIsNone) {
    Settings settings;
    for (auto const& [key, value] : {std::pair{"clone.tpm-policy", "both"}, std::pair{"clone.tpm-policy", ""},
                                     std::pair{"clone", "copy"}, std::pair{"", "copy"}}) {
        auto set = settings.set(key, value);
        ASSERT_FALSE(set);
        EXPECT_EQ(set.error().code(), ErrorCode::InvalidArgument);
    }
    EXPECT_FALSE(settings.get("clone.policy"));
    EXPECT_FALSE(settings.unset("clone.policy"));
}

TEST(Settings, FileIsReadByLines) {
    auto settings = Settings::parse("# chosen by hand\n\n  clone.tpm-policy\t=replace \r\n", "settings");
    ASSERT_TRUE(settings) << settings.error().message();
    EXPECT_EQ(settings->clone_tpm_policy(), TpmPolicy::Replace);
    EXPECT_EQ(Settings::parse("clone.tpm-policy = replace", "settings")->clone_tpm_policy(), TpmPolicy::Replace);
    for (auto const* bad : {"clone.tpm-policy", "clone.tpm-policy = maybe", "other = copy", "= copy",
                            "clone.tpm-policy = copy\nclone.tpm-policy = copy"}) {
        auto parsed = Settings::parse(std::string("# a comment\n") + bad, "the/file");
        ASSERT_FALSE(parsed) << bad;
        EXPECT_EQ(parsed.error().code(), ErrorCode::InvalidArgument);
        EXPECT_NE(parsed.error().message().find("the/file, line "), std::string::npos) << parsed.error().message();
    }
}

TEST(Settings, StoppedAnywhereInSaving) {
    coffer::tests::TempFolder folder;
    HomeRoot const root{folder.path() / "root", folder.path() / "state"};
    bool finished = false;
    for (unsigned at = 0; at < k_most_writes && !finished; ++at) {
        std::filesystem::remove_all(root.root);
        if (at % 2 == 0) {
            ASSERT_TRUE(Settings().save(root));
        }
        auto run = run_traced(
            [&] {
                Settings settings;
                return settings.set(k_clone_tpm_policy, "replace") && settings.save(root) ? 0 : 1;
            },
            {{at / 2, Fault::Kill}});
        finished = !run.killed;
        auto loaded = Settings::load(root);
        ASSERT_TRUE(loaded) << loaded.error().message();
        EXPECT_TRUE(!finished || loaded->clone_tpm_policy() == TpmPolicy::Replace);
    }
    EXPECT_TRUE(finished);
}

} // namespace
} // namespace coffer::vmm::tests
