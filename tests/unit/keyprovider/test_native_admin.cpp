// Native providers over time: versions of their key, backups, restoration.
#include <gtest/gtest.h>

#include "base/file.hpp"
#include "crypto/random.hpp"
#include "keyprovider/native/backup_file.hpp"
#include "keyprovider/native/native_provider.hpp"
#include "keyprovider/registry.hpp"
#include "tests/unit/keyprovider/native_fixture.hpp"

namespace coffer::tests {
namespace {

// Versions of the KDK, backups and their restoration.
class NativeAdmin : public NativeTest {
protected:
    // A bundle key, wrapped by the provider as it is now.
    struct Wrapped {
        ByteVector key;
        KeyId id;
        WrappedKey wrapped;
    };
    Wrapped wrap(ProviderRegistry const& registry, Uuid const& id) {
        auto provider = registry.open(id, nobody_asks);
        auto kek = (*provider)->create_kek("vm");
        EXPECT_TRUE(kek) << kek.error().message();
        auto key = crypto::BundleKey::random();
        auto wrapped = (*provider)->wrap(*kek, *key);
        EXPECT_TRUE(wrapped) << wrapped.error().message();
        return {to_vector(key->expose()), *kek, *wrapped};
    }
    static bool opens(ProviderRegistry const& registry, Uuid const& id, Wrapped const& wrapped) {
        auto provider = registry.open(id, nobody_asks);
        if (!provider) return false;
        auto key = (*provider)->unwrap(wrapped.id, wrapped.wrapped);
        return key && to_vector(key->expose()) == wrapped.key;
    }
    ProviderInfo rotate(Uuid const& id) {
        auto info = m_registry.rotate(id, nobody_asks);
        EXPECT_TRUE(info) << info.error().message();
        return *info;
    }
    ProviderInfo backup(Uuid const& id) {
        auto info = m_registry.backup(id, m_file, true, m_password, nobody_asks);
        EXPECT_TRUE(info) << info.error().message();
        return *info;
    }
    Result<Restored> restore(ProviderRegistry const& registry, RestoreOptions const& options = {}) {
        return registry.restore(m_file, options, m_password, {nobody_asks, nobody_asks});
    }
    static PassphraseSource say(std::string_view words) {
        return [words](std::string_view) -> Result<crypto::SecretBytes> {
            return crypto::SecretBytes::copy_of(as_bytes(words));
        };
    }
    std::vector<uint32_t> versions(ProviderRegistry const& registry, Uuid const& id) {
        return *registry.kdk_versions(id);
    }

    crypto::SecretBytes m_password = crypto::SecretBytes::copy_of(as_bytes("a password"));
    std::filesystem::path m_file = m_folder.path() / "backup.p12";
    ProviderRegistry m_other{m_folder.path() / "other host"};
};

TEST_F(NativeAdmin, RotatedProviderOpensOldAndMakesNew) {
    auto info = add();
    auto old = wrap(m_registry, info.id);
    EXPECT_EQ(NativeProvider::kdk_version_of(old.id.text()), 1U);
    EXPECT_EQ(rotate(info.id).kdk_version, 2U);
    EXPECT_EQ(m_registry.find(info.id)->kdk_version, 2U);
    auto fresh = wrap(m_registry, info.id);
    EXPECT_EQ(NativeProvider::kdk_version_of(fresh.id.text()), 2U);
    EXPECT_TRUE(opens(m_registry, info.id, old));
    EXPECT_TRUE(opens(m_registry, info.id, fresh));
    // One provider object serves both.
    auto provider = open(info.id);
    EXPECT_TRUE(provider->unwrap(old.id, old.wrapped));
    EXPECT_TRUE(provider->unwrap(fresh.id, fresh.wrapped));
    ASSERT_TRUE(m_registry.remove_kdk(*m_registry.find(info.id), 1));
    EXPECT_FALSE(opens(m_registry, info.id, old));
    EXPECT_TRUE(opens(m_registry, info.id, fresh));
    EXPECT_EQ(versions(m_registry, info.id), std::vector<uint32_t>{2});
    EXPECT_EQ(rotate(info.id).kdk_version, 3U);
}

// A stopped rotation may leave a file with a number above the present one, and no number is given twice.
TEST_F(NativeAdmin, VersionNumbersAreNotUsedTwice) {
    auto info = add();
    auto stray = seal_kdk({info.id, 7}, *crypto::KeyDerivationKey::random(), nullptr);
    ASSERT_TRUE(replace_file(kdk_file(info).parent_path() / "kdk.7", stray->expose()));
    for (auto const* name : {"kdk.0", "kdk.08", "kdk.x", "kdk.", "kdk.4294967296", "kdk.9~", ".kdk.9.tmp"})
        ASSERT_TRUE(replace_file(kdk_file(info).parent_path() / name, {}));
    EXPECT_EQ(versions(m_registry, info.id), (std::vector<uint32_t>{1, 7}));
    EXPECT_EQ(rotate(info.id).kdk_version, 8U);
}

TEST_F(NativeAdmin, VersionsAreBounded) {
    auto info = add();
    for (uint32_t i = 1; i < KdkStore::k_max_versions; ++i) rotate(info.id);
    auto refused = m_registry.rotate(info.id, nobody_asks);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("prune"), std::string::npos);
    backup(info.id);
    auto restored = restore(m_other);
    ASSERT_TRUE(restored) << restored.error().message();
    EXPECT_EQ(restored->versions.size(), KdkStore::k_max_versions);
}

TEST_F(NativeAdmin, RotationKeepsThePassphrase) {
    auto passphrase = crypto::SecretBytes::copy_of(as_bytes("correct horse"));
    auto info = m_registry.add_native("locked", &passphrase);
    auto wrong = m_registry.rotate(info->id, say("wrong"));
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::KeyUnavailable);
    EXPECT_EQ(versions(m_registry, info->id), std::vector<uint32_t>{1});
    int asked = 0;
    auto rotated = m_registry.rotate(info->id, [&](std::string_view) -> Result<crypto::SecretBytes> {
        ++asked;
        return crypto::SecretBytes::copy_of(as_bytes("correct horse"));
    });
    ASSERT_TRUE(rotated) << rotated.error().message();
    EXPECT_EQ(asked, 1);
    auto path = kdk_file(*info).parent_path() / "kdk.2";
    EXPECT_TRUE(load_kdk(path, {info->id, 2}, say("correct horse")));
    EXPECT_FALSE(load_kdk(path, {info->id, 2}, say("wrong")));
}

TEST_F(NativeAdmin, BackupOpensTheHomesOfAnotherHost) {
    auto info = add("Schlüssel");
    auto old = wrap(m_registry, info.id);
    rotate(info.id);
    auto fresh = wrap(m_registry, info.id);
    backup(info.id);
    auto restored = restore(m_other);
    ASSERT_TRUE(restored) << restored.error().message();
    EXPECT_FALSE(restored->merged);
    EXPECT_EQ(restored->info.id, info.id);
    EXPECT_EQ(restored->info.name, "Schlüssel");
    EXPECT_EQ(restored->info.kdk_version, 2U);
    EXPECT_FALSE(restored->info.lacks_backup());
    EXPECT_TRUE(opens(m_other, info.id, old));
    EXPECT_TRUE(opens(m_other, info.id, fresh));
    EXPECT_EQ(NativeProvider::kdk_version_of(wrap(m_other, info.id).id.text()), 2U);
    auto others = std::filesystem::perms::group_all | std::filesystem::perms::others_all;
    EXPECT_EQ(std::filesystem::status(m_file).permissions() & others, std::filesystem::perms::none);
}

TEST_F(NativeAdmin, RestoredProviderMayHaveAnotherNameAndAPassphrase) {
    auto info = add("taken");
    auto wrapped = wrap(m_registry, info.id);
    backup(info.id);
    ASSERT_TRUE(m_other.add_native("taken", nullptr));
    auto refused = restore(m_other);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::AlreadyExists);
    EXPECT_NE(refused.error().message().find("--name"), std::string::npos);
    RestoreOptions options;
    options.name = "free";
    options.passphrase = true;
    options.require_backup = true;
    auto restored = m_other.restore(m_file, options, m_password, {say("correct horse"), nobody_asks});
    ASSERT_TRUE(restored) << restored.error().message();
    EXPECT_EQ(restored->info.name, "free");
    EXPECT_TRUE(restored->info.needs_passphrase);
    EXPECT_TRUE(restored->info.require_backup);
    auto provider = m_other.open(info.id, say("correct horse"));
    EXPECT_TRUE((*provider)->unwrap(wrapped.id, wrapped.wrapped));
    auto locked = m_other.open(info.id, say("wrong"));
    EXPECT_FALSE((*locked)->unwrap(wrapped.id, wrapped.wrapped));
}

TEST_F(NativeAdmin, MergeAddsWhatIsMissingAndRepairsWhatIsDamaged) {
    auto info = add();
    auto old = wrap(m_registry, info.id);
    backup(info.id);
    ASSERT_TRUE(restore(m_other));
    rotate(info.id);
    auto fresh = wrap(m_registry, info.id);
    backup(info.id);
    EXPECT_FALSE(opens(m_other, info.id, fresh));
    auto merged = restore(m_other);
    ASSERT_TRUE(merged) << merged.error().message();
    EXPECT_TRUE(merged->merged);
    EXPECT_EQ(merged->versions, std::vector<uint32_t>{2});
    EXPECT_EQ(merged->info.kdk_version, 2U);
    EXPECT_TRUE(opens(m_other, info.id, old));
    EXPECT_TRUE(opens(m_other, info.id, fresh));
    EXPECT_TRUE(restore(m_other)->versions.empty());
    // Damage.
    auto path = m_folder.path() / "other host" / info.id.to_string() / "kdk.1";
    auto file = *read_file(path, 1000);
    file[90] ^= std::byte{1};
    ASSERT_TRUE(replace_file(path, file));
    EXPECT_FALSE(opens(m_other, info.id, old));
    EXPECT_EQ(restore(m_other)->versions, std::vector<uint32_t>{1});
    EXPECT_TRUE(opens(m_other, info.id, old));
    // An older backup takes nothing back.
    EXPECT_EQ(m_other.find(info.id)->kdk_version, 2U);
}

TEST_F(NativeAdmin, ProvidersRotatedApartAreNotMerged) {
    auto info = add();
    backup(info.id);
    ASSERT_TRUE(restore(m_other));
    ASSERT_TRUE(m_other.rotate(info.id, nobody_asks));
    auto theirs = wrap(m_other, info.id);
    rotate(info.id);
    backup(info.id);
    auto refused = restore(m_other);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::AlreadyExists);
    EXPECT_TRUE(opens(m_other, info.id, theirs));
    RestoreOptions named;
    named.name = "x";
    EXPECT_EQ(restore(m_other, named).error().code(), ErrorCode::InvalidArgument);
}

// Merging under a passphrase checks it, though every key of the backup is new here.
TEST_F(NativeAdmin, MergeDoesNotTakeAWrongPassphrase) {
    auto info = add();
    backup(info.id);
    RestoreOptions options;
    options.passphrase = true;
    ASSERT_TRUE(m_other.restore(m_file, options, m_password, {say("right"), nobody_asks}));
    rotate(info.id);
    ASSERT_TRUE(m_registry.remove_kdk(*m_registry.find(info.id), 1));
    backup(info.id); // version 2 alone
    auto wrong = m_other.restore(m_file, {}, m_password, {nobody_asks, say("wrong")});
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::KeyUnavailable);
    EXPECT_EQ(versions(m_other, info.id), std::vector<uint32_t>{1});
    ASSERT_TRUE(m_other.restore(m_file, {}, m_password, {nobody_asks, say("right")}));
    EXPECT_EQ(versions(m_other, info.id), (std::vector<uint32_t>{1, 2}));
}

TEST_F(NativeAdmin, BackupsAreNotedAndRotationMakesThemOld) {
    auto info = add();
    EXPECT_TRUE(info.lacks_backup());
    EXPECT_FALSE(backup(info.id).lacks_backup());
    auto stored = *m_registry.find(info.id);
    EXPECT_FALSE(stored.lacks_backup());
    EXPECT_GT(stored.backed_up, 0);
    stored = rotate(info.id);
    EXPECT_TRUE(stored.lacks_backup());
    EXPECT_EQ(stored.backed_up_version, 1U);
}

TEST_F(NativeAdmin, BackupCanBeRequired) {
    NativeOptions options;
    options.require_backup = true;
    auto info = m_registry.add_native("strict", options, nobody_asks);
    ASSERT_TRUE(info);
    auto refused = open(info->id)->create_kek("vm");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::KeyUnavailable);
    EXPECT_NE(refused.error().message().find("provider backup"), std::string::npos);
    backup(info->id);
    auto wrapped = wrap(m_registry, info->id);
    rotate(info->id);
    EXPECT_FALSE(open(info->id)->create_kek("vm"));
    EXPECT_TRUE(opens(m_registry, info->id, wrapped));
    ASSERT_TRUE(m_registry.require_backup(info->id, false));
    EXPECT_TRUE(open(info->id)->create_kek("vm"));
}

TEST_F(NativeAdmin, BackupOverwritesNothingUnasked) {
    auto info = add();
    ASSERT_TRUE(replace_file(m_file, as_bytes("precious")));
    auto refused = m_registry.backup(info.id, m_file, false, m_password, nobody_asks);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::AlreadyExists);
    EXPECT_EQ(*read_file(m_file, 100), to_vector(as_bytes("precious")));
    EXPECT_TRUE(m_registry.find(info.id)->lacks_backup());
    EXPECT_TRUE(m_registry.backup(info.id, m_folder.path() / "new.p12", false, m_password, nobody_asks));
    backup(info.id);
    EXPECT_NE(*read_file(m_file, 100'000), to_vector(as_bytes("precious")));
}

TEST_F(NativeAdmin, WhatIsNoBackupIsRefusedAndLeavesNothing) {
    auto info = add();
    backup(info.id);
    auto wrong =
        m_other.restore(m_file, {}, crypto::SecretBytes::copy_of(as_bytes("wrong")), {nobody_asks, nobody_asks});
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::KeyUnavailable);
    EXPECT_NE(wrong.error().message().find(m_file.native()), std::string::npos);
    ASSERT_TRUE(replace_file(m_file, as_bytes("no PKCS#12")));
    EXPECT_EQ(restore(m_other).error().code(), ErrorCode::Corrupt);
    EXPECT_TRUE(m_other.list()->empty());
    EXPECT_FALSE(std::filesystem::exists(m_folder.path() / "other host"));
}

TEST_F(NativeAdmin, SafesOfOtherContentAreRefused) {
    auto const id = *crypto::random_uuid();
    auto secret = [](Uuid const& provider, uint32_t version, std::string name = "n", size_t size = 32) {
        ByteVector key(20);
        std::memcpy(key.data(), provider.bytes().data(), 16);
        store_le<uint32_t>(key, 16, version);
        return crypto::Pkcs12Secret{std::move(name), std::move(key), crypto::SecretBytes(size)};
    };
    auto read = [](auto... secrets) {
        std::vector<crypto::Pkcs12Secret> all;
        (all.push_back(std::move(secrets)), ...);
        return detail::read_backup(std::move(all));
    };
    auto good = read(secret(id, 1), secret(id, 3));
    ASSERT_TRUE(good);
    EXPECT_EQ(good->keys.size(), 2U);
    EXPECT_FALSE(read());
    EXPECT_FALSE(read(secret(id, 0)));
    EXPECT_FALSE(read(secret(id, 1, "n", 31)));
    EXPECT_FALSE(read(secret(id, 1), secret(id, 1)));
    EXPECT_FALSE(read(secret(id, 1), secret(*crypto::random_uuid(), 2)));
    EXPECT_FALSE(read(secret(id, 1), secret(id, 2, "m")));
    auto short_id = secret(id, 1);
    short_id.local_key.pop_back();
    EXPECT_FALSE(read(std::move(short_id)));
}

TEST_F(NativeAdmin, ChangesExcludeEachOtherAndTheUseOfKeys) {
    auto info = add();
    auto using_keys = m_registry.lock(info.id, ProviderUse::Shared);
    ASSERT_TRUE(using_keys);
    EXPECT_TRUE(m_registry.lock(info.id, ProviderUse::Shared));
    EXPECT_EQ(m_registry.rotate(info.id, nobody_asks).error().code(), ErrorCode::Busy);
    EXPECT_EQ(m_registry.backup(info.id, m_file, true, m_password, nobody_asks).error().code(), ErrorCode::Busy);
    using_keys->reset();
    EXPECT_EQ(rotate(info.id).kdk_version, 2U);
}

} // namespace
} // namespace coffer::tests
