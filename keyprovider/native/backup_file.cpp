#include "keyprovider/native/backup_file.hpp"

#include <cstring>

namespace coffer {

namespace {

// localKeyId: provider UUID and version (u32, little-endian).
constexpr size_t k_local_key_size = Uuid::k_size + 4;

Error malformed() {
    return make_error(ErrorCode::Corrupt, "it does not hold the keys of one native key provider");
}

} // namespace

Result<ByteVector> seal_backup(NativeBackup const& backup, crypto::SecretBytes const& password) {
    std::vector<crypto::Pkcs12Secret> secrets;
    for (auto const& [version, key] : backup.keys) {
        ByteVector local_key(k_local_key_size);
        std::memcpy(local_key.data(), backup.provider.bytes().data(), Uuid::k_size);
        store_le<uint32_t>(local_key, Uuid::k_size, version);
        secrets.push_back({backup.name, std::move(local_key), crypto::SecretBytes::copy_of(key.expose())});
    }
    return crypto::seal_pkcs12(k_backup_secret_type, secrets, password);
}

Result<NativeBackup> detail::read_backup(std::vector<crypto::Pkcs12Secret> secrets) {
    if (secrets.empty()) return malformed();
    NativeBackup backup;
    backup.name = secrets.front().name;
    bool first = true;
    for (auto& secret : secrets) {
        if (secret.local_key.size() != k_local_key_size || secret.name != backup.name) return malformed();
        Uuid::Storage id;
        std::memcpy(id.data(), secret.local_key.data(), id.size());
        if (!first && Uuid(id) != backup.provider) return malformed();
        backup.provider = Uuid(id);
        first = false;
        auto const version = load_le<uint32_t>(secret.local_key, Uuid::k_size);
        auto key = crypto::KeyDerivationKey::adopt(std::move(secret.value));
        if (version == 0 || !key || !backup.keys.emplace(version, std::move(*key)).second) return malformed();
    }
    return backup;
}

Result<NativeBackup> open_backup(Bytes file, crypto::SecretBytes const& password) {
    return detail::read_backup(TRY(crypto::open_pkcs12(k_backup_secret_type, file, password)));
}

} // namespace coffer
