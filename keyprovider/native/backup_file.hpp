// The backup of a native provider: a PKCS#12 file with a secret bag for each version of its key derivation key. The
// layout is in docs/formats/home.md, "Backup of a native provider". Keeper process only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/uuid.hpp"
#include "crypto/keys.hpp"
#include "crypto/pkcs12.hpp"

namespace coffer {

// The type of the secrets: the UUID 106904e4-ea67-472a-b296-7f010e4544f5 in the arc that needs no
// registration (Rec. ITU-T X.667, 2.25).
constexpr char const* k_backup_secret_type = "2.25.21812938368908626459674482551053174005";

struct NativeBackup {
    Uuid provider;
    std::string name;
    std::map<uint32_t, crypto::KeyDerivationKey> keys; // by version, at least one
};

// Errors as crypto::seal_pkcs12() and crypto::open_pkcs12(); Corrupt where the safe holds something else than the keys
// of one provider.
Result<ByteVector> seal_backup(NativeBackup const& backup, crypto::SecretBytes const& password);
Result<NativeBackup> open_backup(Bytes file, crypto::SecretBytes const& password);

namespace detail {
// What stands in the safe.
Result<NativeBackup> read_backup(std::vector<crypto::Pkcs12Secret> secrets);
} // namespace detail

} // namespace coffer
