// The key files of a native provider, one for each version of its key derivation key: `kdk.1`, `kdk.2` and so on in the
// provider's folder. Keeper process only, but for versions() and remove(). Not thread-safe.
#pragma once

#include <optional>
#include <vector>

#include "keyprovider/native/kdk_file.hpp"
#include "keyprovider/provider_info.hpp"

namespace coffer {

class KdkStore {
public:
    // So many versions at a time; prune removes those that no VM uses.
    static constexpr size_t k_max_versions = 64;

    // `folder` may be one in the making. Nothing is read yet.
    KdkStore(std::filesystem::path folder, ProviderInfo const& info, PassphraseSource passphrase, HostTpms tpms)
        : m_folder(std::move(folder)), m_id(info.id), m_needs_passphrase(info.needs_passphrase), m_tcti(info.host_tpm),
          m_passphrase(std::move(passphrase)), m_tpms(std::move(tpms)) {}

    // Of the files that are there, ascending.
    static Result<std::vector<uint32_t>> versions(std::filesystem::path const& folder);
    static Result<void> remove(std::filesystem::path const& folder, uint32_t version);

    // Errors as load_kdk(). The passphrase is asked for once.
    Result<crypto::KeyDerivationKey> load(uint32_t version);
    // Under the provider's protection; replaces a file that is there. Where files are there already, load one first, so
    // that the passphrase is known to be the right one.
    Result<void> save(uint32_t version, crypto::KeyDerivationKey const& kdk);

private:
    std::filesystem::path path_of(uint32_t version) const;
    Result<crypto::SecretBytes> passphrase(std::string_view what);
    Result<HostTpm*> tpm() const;

    std::filesystem::path m_folder;
    Uuid m_id;
    bool m_needs_passphrase;
    std::string m_tcti; // empty: not bound to a TPM
    PassphraseSource m_passphrase;
    HostTpms m_tpms;
    std::optional<crypto::SecretBytes> m_known; // the passphrase, once it was asked for
    bool m_proved = false;                      // it opened a file
};

} // namespace coffer
