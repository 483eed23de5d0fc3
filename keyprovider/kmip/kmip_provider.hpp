// Keys of a KMIP cluster. A VM's KEK is an AES-256 key at the server, and its identifier the KeyId. A bundle key is
// wrapped in one of two ways, which its first byte tells:
//
//     1   KWP (RFC 5649) under the KEK, which is fetched for it and forgotten again: 40 bytes follow
//     2   AES-256-GCM by the server's Encrypt, so that the KEK stays there: nonce (12), tag (16), ciphertext (32)
#pragma once

#include "keyprovider/key_provider.hpp"
#include "keyprovider/kmip/client/kmip_client.hpp"

namespace coffer::kmip {

class KmipProvider final : public KeyProvider {
public:
    KmipProvider(Uuid id, KmipClient client, bool wrap_at_server)
        : m_id(id), m_client(std::move(client)), m_wrap_at_server(wrap_at_server) {}

    Uuid id() const noexcept override { return m_id; }
    // The label becomes an attribute of the key where the server takes such attributes.
    Result<KeyId> create_kek(std::string_view label) override;
    Result<WrappedKey> wrap(KeyId const& kek, crypto::BundleKey const& key) override;
    Result<crypto::BundleKey> unwrap(KeyId const& kek, WrappedKey const& wrapped) override;
    // Connection, TLS, versions, and a throw-away key that is made, used and destroyed.
    std::vector<ProviderTestStep> test() override;

private:
    enum class Use { Wrap, Unwrap };

    // Servers hand out keys in any state, so the state is looked at before each use: a pre-active key is activated, a
    // deactivated one opens what it wrapped and wraps nothing new, and all further states are refused.
    Result<void> make_usable(KeyId const& kek, Use use);
    Result<WrappedKey> wrap_here(KeyId const& kek, crypto::BundleKey const& key);
    Result<WrappedKey> wrap_there(KeyId const& kek, crypto::BundleKey const& key);
    Result<void> destroy(std::string const& kek);

    Uuid m_id;
    KmipClient m_client;
    bool m_wrap_at_server;
};

} // namespace coffer::kmip
