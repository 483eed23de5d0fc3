// The native key provider: KEKs are derived from one key derivation key (KDK) of this host, so that nothing is stored
// for each VM. KEK = KBKDF-HMAC-SHA-256 (NIST SP 800-108) of the KDK over provider id and key UUID. Key ids are
// "VERSION/UUID", where the version is that of the KDK.
#pragma once

#include <map>
#include <memory>

#include "keyprovider/key_provider.hpp"
#include "keyprovider/native/kdk_store.hpp"

namespace coffer {

class NativeProvider final : public KeyProvider {
public:
    // Loads no key yet; a KDK is read, and the passphrase asked for, when a key is first needed.
    NativeProvider(KdkStore store, ProviderInfo info) : m_store(std::move(store)), m_info(std::move(info)) {}

    // The version of the KDK that a key id of a native provider names; 0 where it names none.
    static uint32_t kdk_version_of(std::string_view key_id) noexcept;

    Uuid id() const noexcept override { return m_info.id; }
    // KeyUnavailable where the provider wants a backup first.
    Result<KeyId> create_kek(std::string_view label) override;
    Result<WrappedKey> wrap(KeyId const& kek, crypto::BundleKey const& key) override;
    Result<crypto::BundleKey> unwrap(KeyId const& kek, WrappedKey const& wrapped) override;

private:
    Result<crypto::KeyEncryptionKey> derive(KeyId const& kek);

    KdkStore m_store;
    ProviderInfo m_info;
    std::map<uint32_t, crypto::KeyDerivationKey> m_kdks; // by version, those that were needed
};

} // namespace coffer
