// Who this host is to others, and which other hosts it lets VMs go to and come from: a certificate of its own, and
// pinned certificates of others (docs/migration.md). One identity a root, in its state folder:
//
//   .host/identity         this host's private key and certificate, mode 0600
//   .host/peers/SHA256     a pinned certificate each, with the name that the owner gave it
//
// Objects are stateless; functions may be called from any thread.
#pragma once

#include <string>
#include <vector>

#include "crypto/tls_channel.hpp"
#include "vmm/home/home_location.hpp"

namespace coffer::vmm {

struct HostIdentity {
    crypto::Certificate certificate;
    crypto::SigningKey key;
};

struct TrustedHost {
    std::string name;
    crypto::Digest fingerprint{};
    crypto::Certificate certificate;
    int64_t since = 0; // seconds since 1970-01-01 UTC
};

constexpr size_t k_max_trusted_hosts = 1024;
// One line of printable characters, at most 64, the first no space.
Result<void> check_host_name(std::string_view name);

class HostTrust {
public:
    explicit HostTrust(HomeRoot const& root) : m_folder(root.state / ".host") {}

    // Makes the identity (a key on P-384, a self-signed certificate for five years) where there is none. Permission
    // where others may read its file; Integrity where that is damaged.
    Result<HostIdentity> identity() const;
    // A new key and certificate in place of the old ones, which other hosts trust no longer.
    Result<HostIdentity> renew() const;

    // By name. Integrity where one of the files is damaged.
    Result<std::vector<TrustedHost>> list() const;
    // NotFound, with what to do, where the certificate is not trusted here.
    Result<TrustedHost> find(crypto::Digest const& fingerprint) const;
    // An empty name: the certificate's own. AlreadyExists where another certificate has the name; a certificate that is
    // trusted already gets the name. Permission where the certificate's dates are past.
    Result<TrustedHost> trust(crypto::Certificate const& certificate, std::string name) const;
    // By name or fingerprint. NotFound.
    Result<TrustedHost> untrust(std::string_view which) const;

private:
    std::filesystem::path identity_path() const { return m_folder / "identity"; }
    std::filesystem::path peers() const { return m_folder / "peers"; }
    std::filesystem::path peer_path(crypto::Digest const& fingerprint) const;
    Result<TrustedHost> read_peer(std::filesystem::path const& path) const;

    std::filesystem::path m_folder;
};

// The file of an identity as bytes, and back. Pure functions. Integrity where it is none; `path` is for messages.
Result<crypto::SecretBytes> encode_identity(HostIdentity const& identity);
Result<HostIdentity> decode_identity(Bytes file, std::filesystem::path const& path);
// The same of a pinned certificate's fields.
ByteVector encode_trusted(TrustedHost const& host, ByteVector der);
Result<TrustedHost> decode_trusted(Bytes fields, std::filesystem::path const& path);

} // namespace coffer::vmm
