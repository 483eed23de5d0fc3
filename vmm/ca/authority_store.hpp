// Where a host keeps its certificate authority for TPMs: ROOT/ca/authority, its private keys encrypted under a key of a
// provider as homes are. One authority a root.
//
// The functions that need keys take a keeper (vmm/home/keeper_client.hpp), so that one keeper, which asks for a
// passphrase once, serves the authority and the home that goes with it.
#pragma once

#include <optional>

#include "vmm/ca/authority.hpp"
#include "vmm/ca/authority_file.hpp"
#include "vmm/home/home_location.hpp"
#include "vmm/home/keeper_client.hpp"

namespace coffer::vmm {

// What the authority shows without keys; none of it is authenticated.
struct AuthorityInfo {
    Uuid provider;
    std::string key_id;
    int64_t written = 0; // seconds since 1970-01-01 UTC
    AuthorityOrigin origin = AuthorityOrigin::Own;
    std::vector<crypto::Certificate> chain;
};

class AuthorityStore {
public:
    explicit AuthorityStore(HomeRoot const& root) : m_folder(root.root / "ca") {}

    // Nothing where the host has none yet. Integrity where its file is malformed.
    Result<std::optional<AuthorityInfo>> info() const;

    struct Opened {
        Authority authority;
        bool made = false; // just now
    };
    // Makes one where there is none: a root and an authority below it, both ECC P-384 and without end, under a fresh
    // key of `provider`. KeyUnavailable, with what to do, where the provider of an existing one does not give its key.
    Result<Opened> open_or_make(KeeperProcess& keeper, Uuid const& provider) const;
    // NotFound where there is none.
    Result<Authority> open(KeeperProcess& keeper) const;

    // Puts the authority's keys under a fresh key of another provider, or of the same. NotFound where there is none.
    Result<void> protect(KeeperProcess& keeper, Uuid const& provider) const;
    // Replaces the authority by the owner's, under a fresh key of `provider`. Certificates that were issued before
    // stay as they are.
    Result<void> import(KeeperProcess& keeper, Uuid const& provider, Authority const& authority) const;

private:
    struct Loaded {
        ByteVector bytes;
        ParsedAuthority parsed; // into bytes
    };

    std::filesystem::path path() const { return m_folder / "authority"; }
    Result<std::optional<Loaded>> load() const;
    Result<Loaded> load_existing() const;
    Result<AuthorityKeys> unseal_keys(KeeperProcess& keeper, Loaded const& loaded) const;
    Result<Authority> unseal(KeeperProcess& keeper, Loaded const& loaded) const;
    Result<void> write(KeeperProcess& keeper, Uuid const& provider, AuthorityOrigin origin,
                       std::vector<crypto::Certificate> const& chain, AuthorityKeys const& keys) const;

    std::filesystem::path m_folder;
};

} // namespace coffer::vmm
