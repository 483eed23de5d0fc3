// The native key provider: KEKs are derived from one key derivation key (KDK) of this host, so that nothing is stored
// for each VM. KEK = KBKDF-HMAC-SHA-256 (NIST SP 800-108) of the KDK over provider id and key UUID. Key ids are
// "VERSION/UUID", where the version is that of the KDK.
#pragma once

#include <memory>
#include <optional>

#include "keyprovider/key_provider.hpp"
#include "keyprovider/native/kdk_file.hpp"

namespace coffer {

class NativeProvider final : public KeyProvider {
public:
    // Loads no key yet; the KDK is read, and the passphrase asked for, when a key is first needed.
    NativeProvider(std::filesystem::path folder, Uuid id, PassphraseSource passphrase)
        : m_folder(std::move(folder)), m_id(id), m_passphrase(std::move(passphrase)) {}

    // Fills an existing empty folder with a provider's first KDK.
    static Result<void> create(std::filesystem::path const& folder, Uuid const& id,
                               crypto::SecretBytes const* passphrase);

    Uuid id() const noexcept override { return m_id; }
    Result<KeyId> create_kek(std::string_view label) override;
    Result<WrappedKey> wrap(KeyId const& kek, crypto::BundleKey const& key) override;
    Result<crypto::BundleKey> unwrap(KeyId const& kek, WrappedKey const& wrapped) override;

private:
    Result<crypto::KeyEncryptionKey> derive(KeyId const& kek);

    std::filesystem::path m_folder;
    Uuid m_id;
    PassphraseSource m_passphrase;
    std::optional<crypto::KeyDerivationKey> m_kdk;
};

} // namespace coffer
