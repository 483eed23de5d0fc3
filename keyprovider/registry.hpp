// The key providers of a root: a folder each, named by UUID, with a descriptor that holds no secret. Names are free
// text; everything else refers to providers by UUID.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "keyprovider/key_provider.hpp"
#include "keyprovider/kmip/kmip_config.hpp"
#include "keyprovider/native/kdk_store.hpp"
#include "keyprovider/provider_info.hpp"
#include "keyprovider/provider_lock.hpp"

namespace coffer {

struct NativeBackup;

// What a new native provider is to be.
struct NativeOptions {
    bool passphrase = false; // its keys are under one
    bool require_backup = false;
    std::string host_tpm{}; // a TCTI: its keys are sealed to that TPM of this host
};

// Of a provider that this root does not have yet; one that it has wants none of them but its own passphrase.
struct RestoreOptions : NativeOptions {
    std::string name; // empty: as in the backup
};

struct RestorePassphrases {
    PassphraseSource fresh; // for a provider that is made
    PassphraseSource known; // of the one that is there
};

struct Restored {
    ProviderInfo info;
    bool merged = false;            // into a provider that was there
    std::vector<uint32_t> versions; // KDK versions that were written: absent or unusable before
};

class ProviderRegistry {
public:
    // `folder` need not exist yet. `tpms` serves providers that are bound to the host's TPM; in the keeper process.
    explicit ProviderRegistry(std::filesystem::path folder, HostTpms tpms = {})
        : m_folder(std::move(folder)), m_tpms(std::move(tpms)) {}

    // By name. Integrity where a descriptor is damaged.
    Result<std::vector<ProviderInfo>> list() const;
    // NotFound, with the line that says how to add one.
    Result<ProviderInfo> find(std::string_view name) const;
    // KeyUnavailable where this root has no such provider.
    Result<ProviderInfo> find(Uuid const& id) const;

    // The provider's lock; see lock_provider().
    Result<UniqueFd> lock(Uuid const& id, ProviderUse use) const { return lock_provider(folder_of(id), use); }

    // A provider with a new KDK. `passphrase` is asked where the options want one. AlreadyExists, InvalidArgument (the
    // name: 1 to 128 bytes without control characters; an empty passphrase). Keeper process only.
    Result<ProviderInfo> add_native(std::string_view name, NativeOptions const& options,
                                    PassphraseSource const& passphrase) const;

    // The same under a passphrase that is known already; null: under none.
    Result<ProviderInfo> add_native(std::string_view name, crypto::SecretBytes const* passphrase) const;

    // The rest of native providers; InvalidArgument for one of another kind. `passphrase` is asked where the provider's
    // keys are under one. Those of keys are for the keeper process only.
    //
    // A new KDK version, which new KEKs are made from; old ones go on to open what they opened.
    Result<ProviderInfo> rotate(Uuid const& id, PassphraseSource const& passphrase) const;
    // All KDK versions in one file under `password`, mode 0600. AlreadyExists where the file is there and is not to be
    // overwritten.
    Result<ProviderInfo> backup(Uuid const& id, std::filesystem::path const& file, bool overwrite,
                                crypto::SecretBytes const& password, PassphraseSource const& passphrase) const;
    // From a backup: a provider that is not there is made with the backup's UUID; one that is gets the KDK versions
    // that it lacks, that are damaged or that this host's TPM does not open, and keeps its name and protection.
    // AlreadyExists where a version is there with another key: the provider was rotated on two hosts. Errors of
    // open_backup().
    Result<Restored> restore(std::filesystem::path const& file, RestoreOptions const& options,
                             crypto::SecretBytes const& password, RestorePassphrases const& passphrases) const;
    // Whether new keys wait for a backup.
    Result<ProviderInfo> require_backup(Uuid const& id, bool required) const;
    // Versions of the KDK that are on this host, and the removal of some of them, for good, under the exclusive lock
    // that the caller holds. The one of new KEKs is never removed.
    Result<std::vector<uint32_t>> kdk_versions(Uuid const& id) const { return KdkStore::versions(folder_of(id)); }
    Result<void> remove_kdk(ProviderInfo const& info, uint32_t version) const;

    // A KMIP cluster. Nothing is connected to. Errors as add_native(), and those of kmip::check_config().
    // `id` is the one of a provider of the same servers on another host; nil: a new one.
    Result<ProviderInfo> add_kmip(std::string_view name, kmip::KmipConfig const& config,
                                  crypto::SecretBytes const& client_key, Uuid const& id = {}) const;
    // Of a provider of this kind.
    Result<kmip::KmipConfig> kmip_config(Uuid const& id) const { return kmip::read_config(folder_of(id)); }

    // The provider that new VMs get where none is named. Nothing where none was chosen, or it is gone.
    Result<std::optional<Uuid>> default_provider() const;
    Result<void> set_default(Uuid const& id) const;

    // With its keys, for good, where they lie on this host; keys at a server stay there. The caller sees to it that no
    // VM uses it.
    Result<void> remove(Uuid const& id) const;

    // Keeper process only. `resolver` finds the addresses of key servers.
    Result<std::unique_ptr<KeyProvider>> open(Uuid const& id, PassphraseSource passphrase,
                                              kmip::Resolver resolver = kmip::resolve_here) const;

private:
    // InvalidArgument for what is no name, AlreadyExists for one that is taken.
    Result<void> check_new_name(std::string_view name) const;
    // A new provider whose own files `fill` writes into the given folder. An id is made where it has none.
    using Fill = std::function<Result<void>(std::filesystem::path const& folder, ProviderInfo const& info)>;
    Result<ProviderInfo> add(ProviderInfo info, Fill const& fill) const;
    Result<ProviderInfo> find_native(Uuid const& id) const;
    Result<void> write_descriptor(ProviderInfo const& info) const;
    // A provider's store of KDKs, where the passphrase is asked for by the provider's name.
    KdkStore store_of(ProviderInfo const& info, PassphraseSource passphrase) const;
    Result<Restored> merge(NativeBackup const& backup, RestoreOptions const& options,
                           PassphraseSource const& passphrase) const;

    std::filesystem::path folder_of(Uuid const& id) const { return m_folder / id.to_string(); }

    std::filesystem::path m_folder;
    HostTpms m_tpms;
};

} // namespace coffer
