// KMIP's operations on symmetric keys, as a client of a cluster. Identifiers are always sent: a server's "ID
// placeholder" may be another client's.
#pragma once

#include "crypto/keys.hpp"
#include "keyprovider/kmip/client/cluster.hpp"

namespace coffer::kmip {

struct ServerInformation {
    std::string vendor; // printable, bounded; empty where the server does not say
    std::vector<uint32_t> operations;

    bool offers(Operation operation) const noexcept;
};

// Encrypted at the server with AES-256-GCM.
struct GcmSealed {
    ByteVector nonce; // 12 bytes
    ByteVector tag;   // 16 bytes
    ByteVector data;
};

// Errors: KeyUnavailable where no server answers, or it says that the key does not exist or is not this client's;
// Unsupported where the server does not have the operation; Corrupt where its answer is malformed. Not thread-safe.
class KmipClient {
public:
    explicit KmipClient(Cluster cluster) : m_cluster(std::move(cluster)) {}

    Cluster& cluster() noexcept { return m_cluster; }

    Result<ServerInformation> query();
    // A new AES-256 key for Encrypt and Decrypt; gives its identifier.
    Result<std::string> create();
    Result<std::string> register_key(crypto::KeyEncryptionKey const& key);
    Result<crypto::KeyEncryptionKey> get(std::string_view id);
    // Wrapped at the server by another of its keys (NIST key wrap, RFC 3394).
    Result<ByteVector> get_wrapped(std::string_view id, std::string_view wrapping_id);
    Result<State> state(std::string_view id);
    // A custom attribute: "x-NAME" before KMIP 2.0, NAME of vendor "x" from then on.
    Result<void> set_attribute(std::string_view id, std::string_view name, std::string_view value);
    // At most `limit` keys of this name. Some servers leave a filter out that they do not understand, and names are not
    // unique: nothing may be destroyed because it was found.
    Result<std::vector<std::string>> locate(std::string_view name, size_t limit);
    Result<void> activate(std::string_view id);
    Result<void> revoke(std::string_view id, RevocationReasonCode reason);
    Result<void> destroy(std::string_view id);
    // Unsupported below KMIP 1.4, which has no authentication tag.
    Result<GcmSealed> encrypt(std::string_view id, crypto::SecretBytes const& plaintext);
    // Integrity where the server says that what was encrypted does not open.
    Result<crypto::SecretBytes> decrypt(std::string_view id, GcmSealed const& sealed);

private:
    Result<Answer> call(RequestOperation request, PayloadWriter const& payload);
    // What the request is called in the version that the server in use speaks.
    Operation in_use(RequestOperation request) const;
    // Of an operation on one key: the answer must name the same one.
    Result<Answer> call_for(RequestOperation request, std::string_view id, PayloadWriter const& rest);
    Result<void> require_gcm();

    Cluster m_cluster;
};

} // namespace coffer::kmip
