// A native provider's key derivation key on disk: 0600, and under a passphrase where its owner gave one. The bytes are
// in docs/formats/home.md, "Native provider". Thread-safe.
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"

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

// Permission where group or others have any right to the file; KeyUnavailable where it does not exist, a passphrase is
// refused or wrong; Integrity where the file was changed or is another key's.
Result<crypto::KeyDerivationKey> load_kdk(std::filesystem::path const& path, KdkIdentity const& identity,
                                          PassphraseSource const& passphrase);

} // namespace coffer
