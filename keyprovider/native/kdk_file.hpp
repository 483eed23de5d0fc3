// A native provider's key derivation key on disk: 0600, and under a passphrase or the host's TPM where its owner wants.
// The bytes are in docs/formats/home.md, "Native provider". Thread-safe.
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"
#include "keyprovider/native/host_tpm.hpp"

namespace coffer {

// Asked for a passphrase when one is needed. The text says for what.
using PassphraseSource = std::function<Result<crypto::SecretBytes>(std::string_view what)>;

// Which key of which provider a file holds; bound to the key where a passphrase protects it.
struct KdkIdentity {
    Uuid provider;
    uint32_t version = 1;
};

// The file's bytes. No passphrase (null): whoever reads the file has the key. InvalidArgument for an empty passphrase.
Result<crypto::SecretBytes> seal_kdk(KdkIdentity const& identity, crypto::KeyDerivationKey const& kdk,
                                     crypto::SecretBytes const* passphrase);

// The same, openable by this host's TPM alone. Errors as HostTpm::seal().
Result<crypto::SecretBytes> seal_kdk_to_tpm(KdkIdentity const& identity, crypto::KeyDerivationKey const& kdk,
                                            HostTpm& tpm);

// The TPM that the provider's keys are bound to.
using TpmSource = std::function<Result<HostTpm*>()>;

// Permission where group or others have any right to the file; KeyUnavailable where it does not exist, a passphrase is
// refused or wrong, or the TPM does not answer; Integrity where the file was changed, is another key's or another
// TPM's.
Result<crypto::KeyDerivationKey> load_kdk(std::filesystem::path const& path, KdkIdentity const& identity,
                                          PassphraseSource const& passphrase, TpmSource const& tpm = {});

namespace detail {
// load_kdk() behind the reading of the file.
Result<crypto::KeyDerivationKey> open_kdk(std::filesystem::path const& path, Bytes file, KdkIdentity const& identity,
                                          PassphraseSource const& passphrase, TpmSource const& tpm);
} // namespace detail

} // namespace coffer
