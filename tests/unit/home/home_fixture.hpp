// A home in a folder of its own, opened with a bundle key that the test keeps instead of a provider.
#pragma once

#include <map>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file.hpp"
#include "crypto/random.hpp"
#include "tests/support/temp_folder.hpp"
#include "vmm/home/home_admin.hpp"
#include "vmm/home/home_open.hpp"

namespace coffer::vmm::tests {

inline ByteVector bytes_of(std::string_view text) {
    auto bytes = as_bytes(text);
    return {bytes.begin(), bytes.end()};
}

inline crypto::BundleKey copy_of(crypto::BundleKey const& key) {
    return std::move(*crypto::BundleKey::adopt(crypto::SecretBytes::copy_of(key.expose())));
}

inline VmConfig make_config(std::string name, TpmKind tpm = TpmKind::Crb) {
    VmConfig config;
    config.name = std::move(name);
    config.uuid = *crypto::random_uuid();
    config.memory = uint64_t{512} << 20;
    config.cpus = 2;
    config.disks = {{"/var/lib/disks/secret-disk-name.img", false}};
    config.tpm = tpm;
    config.firmware_code = "/usr/share/OVMF/OVMF_CODE_4M.fd";
    config.firmware_variables = "/usr/share/OVMF/OVMF_VARS_4M.fd";
    return config;
}

class Host {
public:
    explicit Host(std::filesystem::path const& base) { m_root = {base / "root", base / "state"}; }

    HomeLocation location(std::string name) const { return {m_root, std::move(name)}; }
    HomeRoot const& root() const { return m_root; }

    HomeSeal seal() const {
        return {*crypto::random_uuid(), *KeyId::parse("1/some-key"), {bytes_of("wrapped bundle key")}, copy_of(m_key)};
    }
    Result<void> create(VmConfig const& config, Bytes nvram) {
        return create_home(location(config.name), config, nvram, seal());
    }
    Result<std::unique_ptr<HomeSession>> open(std::string const& name, HomeAccess access = HomeAccess::Writer,
                                              RollbackPolicy rollback = RollbackPolicy::Refuse) const {
        auto unwrap = [&](BundleHeader const& header) -> Result<crypto::BundleKey> {
            auto known = m_other_keys.find(header.key_id);
            return copy_of(known == m_other_keys.end() ? m_key : known->second);
        };
        return open_home(location(name), access, unwrap, rollback);
    }
    crypto::BundleKey const& key() const { return m_key; }

    // As a provider would make it; open() has the key from here on.
    HomeSeal make_seal(std::string const& key_id, Uuid const& provider = *crypto::random_uuid()) {
        auto key = *crypto::BundleKey::random();
        m_other_keys.insert_or_assign(key_id, copy_of(key));
        return {provider, *KeyId::parse(key_id), {bytes_of("wrapped under " + key_id)}, std::move(key)};
    }

private:
    HomeRoot m_root;
    crypto::BundleKey m_key = *crypto::BundleKey::random();
    std::map<std::string, crypto::BundleKey> m_other_keys; // by key id
};

class HomeTest : public testing::Test {
protected:
    // A VM "vm" with NVRAM of two and a half units and some TPM state.
    void SetUp() override {
        ASSERT_TRUE(m_host.create(m_config, m_nvram));
        auto home = m_host.open("vm");
        ASSERT_TRUE(home) << home.error().message();
        ASSERT_TRUE((*home)->commit(HomeFile::Tpm, m_tpm));
    }

    std::filesystem::path file(std::string_view name) const { return m_host.location("vm").folder() / name; }
    std::filesystem::path record() const { return m_host.location("vm").host_record(); }

    static ByteVector content(std::filesystem::path const& path) {
        auto bytes = read_file(path, size_t{1} << 30);
        EXPECT_TRUE(bytes);
        return bytes ? *bytes : ByteVector();
    }
    static void put(std::filesystem::path const& path, Bytes bytes) {
        auto fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
        ASSERT_TRUE(fd);
        ASSERT_TRUE(pwrite_all(fd->get(), bytes, 0, path));
    }

    // The home does not open, for want of integrity; the message names the file, and no file of the home is written.
    void expect_refused(std::filesystem::path const& named) {
        auto before = snapshot();
        auto home = m_host.open("vm");
        ASSERT_FALSE(home) << "opened, though " << named << " is not what it was";
        EXPECT_EQ(home.error().code(), ErrorCode::Integrity) << home.error().message();
        EXPECT_NE(home.error().message().find(named.native()), std::string::npos) << home.error().message();
        EXPECT_EQ(snapshot(), before);
    }
    void expect_opens() {
        auto home = m_host.open("vm");
        ASSERT_TRUE(home) << home.error().message();
        EXPECT_EQ((*home)->config(), m_config);
    }
    // Every file of home and host record but the lock.
    std::map<std::string, ByteVector> snapshot() const {
        std::map<std::string, ByteVector> files;
        for (auto const& entry : std::filesystem::recursive_directory_iterator(m_folder.path()))
            if (entry.is_regular_file() && entry.path().filename() != "lock")
                files[entry.path()] = content(entry.path());
        return files;
    }

    // The content of an image, which stands behind its header as it is, and its digest in the header.
    static Result<ImageRoot> write_content(ImageWriting const& writing, Bytes content) {
        auto fd = TRY(open_file(writing.path, O_WRONLY | O_CREAT | O_TRUNC));
        TRY(pwrite_all(fd.get(), content, home_spec::data::k_header_size, writing.path));
        auto digest = TRY(crypto::sha256({content}));
        return ImageRoot{digest, bytes_of("own part")};
    }
    static void add_image(HomeSession& home, std::string_view name, Bytes content) {
        auto writing = home.begin_image(name);
        ASSERT_TRUE(writing) << writing.error().message();
        auto root = write_content(*writing, content);
        ASSERT_TRUE(root) << root.error().message();
        auto committed = home.commit_image(*writing, *root);
        ASSERT_TRUE(committed) << committed.error().message();
    }
    static Result<ImageRoot> rewrite_image(OpenedImage const& from, ImageWriting const& to,
                                           std::function<void(uint64_t)> const& advance) {
        auto whole = TRY(read_file(from.path, 1 << 20));
        advance(from.header.content_size);
        return write_content(to, Bytes(whole).subspan(home_spec::data::k_header_size));
    }

    coffer::tests::TempFolder m_folder;
    Host m_host{m_folder.path()};
    VmConfig m_config = make_config("vm");
    ByteVector m_nvram = ByteVector(10'000, std::byte{0x5A});
    ByteVector m_tpm = bytes_of("TPM state: a planted secret");
};

} // namespace coffer::vmm::tests
