// The native provider and the registry of providers.
#include <sys/stat.h>

#include <gtest/gtest.h>

#include "base/file.hpp"
#include "crypto/kdf.hpp"
#include "crypto/key_wrap.hpp"
#include "crypto/random.hpp"
#include "keyprovider/native/native_provider.hpp"
#include "keyprovider/registry.hpp"
#include "tests/unit/keyprovider/native_fixture.hpp"

namespace coffer {
namespace {

using namespace coffer::tests;

TEST_F(NativeTest, UnwrapsWhatItWrappedAfterARestart) {
    auto info = add();
    auto key = crypto::BundleKey::random();
    auto provider = open(info.id);
    auto kek = provider->create_kek("vm");
    ASSERT_TRUE(kek);
    auto wrapped = provider->wrap(*kek, *key);
    ASSERT_TRUE(wrapped) << wrapped.error().message();
    auto again = open(info.id);
    auto unwrapped = again->unwrap(*KeyId::parse(kek->text()), *wrapped);
    ASSERT_TRUE(unwrapped) << unwrapped.error().message();
    EXPECT_EQ(to_vector(unwrapped->expose()), to_vector(key->expose()));
}

// From the format's description alone: the KDK is at byte 80 of its file, and the KEK is SP 800-108 over it.
TEST_F(NativeTest, KekIsTheDocumentedDerivation) {
    auto info = add();
    auto provider = open(info.id);
    auto key = crypto::BundleKey::random();
    auto kek_id = provider->create_kek("vm");
    auto wrapped = provider->wrap(*kek_id, *key);
    ASSERT_TRUE(wrapped);
    auto file = read_file(kdk_file(info), 1000);
    ASSERT_TRUE(file);
    ASSERT_EQ(kek_id->text().substr(0, 2), "1/");
    auto uuid = Uuid::parse(kek_id->text().substr(2));
    ASSERT_TRUE(uuid);
    ByteVector fixed = to_vector(as_bytes("coffer native provider KEK"));
    fixed.push_back(std::byte{0});
    append(fixed, info.id.bytes());
    append(fixed, uuid->bytes());
    std::array<std::byte, 4> bits{};
    store_be<uint32_t>(bits, 0, 256);
    append(fixed, bits);
    auto kek = crypto::detail::kbkdf_hmac_sha256_raw(Bytes(*file).subspan(80, 32), fixed, 32);
    ASSERT_TRUE(kek);
    auto opened = crypto::detail::kwp_unwrap(kek->expose(), wrapped->bytes);
    ASSERT_TRUE(opened) << opened.error().message();
    EXPECT_EQ(to_vector(opened->expose()), to_vector(key->expose()));
}

TEST_F(NativeTest, AnotherKeyOrProviderDoesNotUnwrap) {
    auto one = add("one");
    auto other = add("other");
    auto provider = open(one.id);
    auto kek = provider->create_kek("vm");
    auto wrapped = provider->wrap(*kek, *crypto::BundleKey::random());
    ASSERT_TRUE(wrapped);
    auto second_kek = provider->create_kek("vm");
    EXPECT_NE(kek->text(), second_kek->text());
    auto refused = provider->unwrap(*second_kek, *wrapped);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), ErrorCode::Integrity);
    EXPECT_FALSE(open(other.id)->unwrap(*kek, *wrapped));
    for (auto const* text : {"2/00000000-0000-4000-8000-000000000000", "1/no-uuid", "kmip-17"}) {
        auto unknown = provider->unwrap(*KeyId::parse(text), *wrapped);
        ASSERT_FALSE(unknown);
        EXPECT_EQ(unknown.error().code(), ErrorCode::KeyUnavailable);
    }
}

TEST_F(NativeTest, FilesAreTheOwnersAlone) {
    auto info = add();
    auto others = std::filesystem::perms::group_all | std::filesystem::perms::others_all;
    for (auto const& entry : std::filesystem::recursive_directory_iterator(m_folder.path()))
        EXPECT_EQ(entry.status().permissions() & others, std::filesystem::perms::none) << entry.path();
}

TEST_F(NativeTest, WiderModesAreRefused) {
    auto info = add();
    auto provider = open(info.id);
    auto kek = provider->create_kek("vm");
    for (mode_t mode : {0640U, 0604U, 0620U, 0601U, 0644U, 0666U}) {
        ASSERT_EQ(::chmod(kdk_file(info).c_str(), mode), 0);
        auto wrapped = open(info.id)->wrap(*kek, *crypto::BundleKey::random());
        ASSERT_FALSE(wrapped) << mode;
        EXPECT_EQ(wrapped.error().code(), ErrorCode::Permission);
        EXPECT_NE(wrapped.error().message().find("chmod 600"), std::string::npos);
    }
    ASSERT_EQ(::chmod(kdk_file(info).c_str(), 0600), 0);
    EXPECT_TRUE(open(info.id)->wrap(*kek, *crypto::BundleKey::random()));
}

TEST_F(NativeTest, AnyChangeToTheKeyFileIsRefused) {
    auto info = add();
    auto path = kdk_file(info);
    auto whole = read_file(path, 1000);
    ASSERT_TRUE(whole);
    KdkIdentity const identity{info.id, 1};
    for (size_t i = 0; i < whole->size(); ++i) {
        auto changed = *whole;
        changed[i] ^= std::byte{0x20};
        ASSERT_TRUE(replace_file(path, changed));
        auto loaded = load_kdk(path, identity, [](auto) { return crypto::SecretBytes::random(8); });
        ASSERT_FALSE(loaded) << i;
        EXPECT_EQ(loaded.error().code(), ErrorCode::Integrity) << i;
    }
    for (size_t size = 0; size < whole->size(); size += 7) {
        ASSERT_TRUE(replace_file(path, Bytes(*whole).first(size)));
        EXPECT_FALSE(load_kdk(path, identity, nobody_asks)) << size;
    }
    ASSERT_TRUE(replace_file(path, *whole));
    EXPECT_TRUE(load_kdk(path, identity, nobody_asks));
    EXPECT_FALSE(load_kdk(path, {*crypto::random_uuid(), 1}, nobody_asks));
    EXPECT_FALSE(load_kdk(path, {info.id, 2}, nobody_asks));
}

TEST_F(NativeTest, MissingKeyFileIsKeyUnavailable) {
    auto info = add();
    std::filesystem::remove(kdk_file(info));
    auto provider = open(info.id);
    auto wrapped = provider->wrap(*provider->create_kek("vm"), *crypto::BundleKey::random());
    ASSERT_FALSE(wrapped);
    EXPECT_EQ(wrapped.error().code(), ErrorCode::KeyUnavailable);
}

// One scrypt takes a quarter of a second and 128 MiB: few cases, chosen to hit each part of the file.
TEST_F(NativeTest, PassphraseProtectsTheKey) {
    auto passphrase = crypto::SecretBytes::copy_of(as_bytes("correct horse"));
    auto info = m_registry.add_native("locked", &passphrase);
    ASSERT_TRUE(info);
    EXPECT_TRUE(info->needs_passphrase);
    EXPECT_TRUE(m_registry.find("locked")->needs_passphrase);
    auto path = kdk_file(*info);
    KdkIdentity const identity{info->id, 1};
    auto say = [](std::string_view words) {
        return [words](std::string_view) -> Result<crypto::SecretBytes> {
            return crypto::SecretBytes::copy_of(as_bytes(words));
        };
    };
    EXPECT_TRUE(load_kdk(path, identity, say("correct horse")));
    auto wrong = load_kdk(path, identity, say("correct horsf"));
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::KeyUnavailable);
    auto whole = read_file(path, 1000);
    ASSERT_TRUE(whole);
    for (size_t i : {size_t{50}, size_t{90}}) { // salt, sealed key
        auto changed = *whole;
        changed[i] ^= std::byte{1};
        ASSERT_TRUE(replace_file(path, changed));
        EXPECT_FALSE(load_kdk(path, identity, say("correct horse"))) << i;
    }
    // Not asked for at all: another protection, a cost that no host could pay.
    for (auto [at, value] : {std::pair<size_t, uint8_t>{32, 0}, {32, 7}, {33, 63}, {36, 255}, {40, 255}}) {
        auto changed = *whole;
        changed[at] = std::byte{value};
        ASSERT_TRUE(replace_file(path, changed));
        EXPECT_FALSE(load_kdk(path, identity, nobody_asks)) << at;
    }
}

TEST_F(NativeTest, PassphraseIsAskedForOnceAndByName) {
    auto passphrase = crypto::SecretBytes::copy_of(as_bytes("correct horse"));
    auto info = m_registry.add_native("My keys", &passphrase);
    ASSERT_TRUE(info);
    int asked = 0;
    auto provider = open(info->id, [&](std::string_view what) -> Result<crypto::SecretBytes> {
        ++asked;
        EXPECT_NE(what.find("My keys"), std::string_view::npos);
        return crypto::SecretBytes::copy_of(as_bytes("correct horse"));
    });
    auto kek = provider->create_kek("vm");
    auto wrapped = provider->wrap(*kek, *crypto::BundleKey::random());
    ASSERT_TRUE(wrapped) << wrapped.error().message();
    EXPECT_TRUE(provider->unwrap(*kek, *wrapped));
    EXPECT_EQ(asked, 1);
}

TEST_F(NativeTest, EmptyPassphraseIsRefused) {
    crypto::SecretBytes empty;
    auto added = m_registry.add_native("x", &empty);
    ASSERT_FALSE(added);
    EXPECT_EQ(added.error().code(), ErrorCode::InvalidArgument);
    EXPECT_TRUE(m_registry.list()->empty());
    EXPECT_TRUE(std::filesystem::is_empty(m_folder.path() / "providers"));
}

TEST_F(NativeTest, NamesAreFreeTextAndUnique) {
    add("Schlüssel im Büro / 2");
    EXPECT_EQ(m_registry.find("Schlüssel im Büro / 2")->name, "Schlüssel im Büro / 2");
    auto twice = m_registry.add_native("Schlüssel im Büro / 2", nullptr);
    ASSERT_FALSE(twice);
    EXPECT_EQ(twice.error().code(), ErrorCode::AlreadyExists);
    EXPECT_FALSE(m_registry.add_native("", nullptr));
    EXPECT_FALSE(m_registry.add_native("a\nb", nullptr));
    EXPECT_FALSE(m_registry.add_native(std::string(129, 'x'), nullptr));
    auto missing = m_registry.find("other");
    ASSERT_FALSE(missing);
    EXPECT_EQ(missing.error().code(), ErrorCode::NotFound);
    EXPECT_NE(missing.error().message().find("provider add native"), std::string::npos);
    auto unknown = m_registry.find(*crypto::random_uuid());
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code(), ErrorCode::KeyUnavailable);
}

TEST_F(NativeTest, DamagedDescriptorIsRefused) {
    auto info = add();
    auto path = m_folder.path() / "providers" / info.id.to_string() / "provider";
    auto whole = read_file(path, 4096);
    ASSERT_TRUE(whole);
    for (size_t i = 0; i < whole->size(); ++i) {
        auto changed = *whole;
        changed[i] ^= std::byte{1};
        ASSERT_TRUE(replace_file(path, changed));
        auto listed = m_registry.list();
        ASSERT_FALSE(listed) << i;
        EXPECT_EQ(listed.error().code(), ErrorCode::Integrity) << i;
        EXPECT_NE(listed.error().message().find(path.native()), std::string::npos);
    }
}

TEST(KeyId, OnlyPrintableTextOfBoundedLength) {
    EXPECT_TRUE(KeyId::parse("1/abc"));
    EXPECT_TRUE(KeyId::parse(std::string(255, 'x')));
    for (auto text :
         {std::string(), std::string("a b"), std::string("a\n"), std::string("\x80"), std::string(256, 'x')})
        EXPECT_FALSE(KeyId::parse(text));
}

} // namespace
} // namespace coffer
