#include "keyprovider/native/kdk_file.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>

#include "base/file.hpp"
#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"
#include "crypto/mac.hpp"
#include "crypto/random.hpp"

namespace coffer {

namespace {

constexpr std::array<char, 8> k_magic = {'C', 'O', 'F', 'R', 'K', 'D', 'K', '\0'};
constexpr uint32_t k_format_version = 1;
constexpr size_t k_version_at = 8;
constexpr size_t k_kdk_version_at = 12;
constexpr size_t k_provider_at = 16;
constexpr size_t k_protection_at = 32;
constexpr size_t k_log2_n_at = 33;
constexpr size_t k_r_at = 36;
constexpr size_t k_p_at = 40;
constexpr size_t k_salt_at = 48;
constexpr size_t k_salt_size = 32;
constexpr size_t k_header_size = 80;
// Behind the header: without a passphrase the key and the SHA-256 of all before it, with one the sealed key.
constexpr size_t k_plain_size = k_header_size + crypto::KeyDerivationKey::k_size + crypto::k_digest_size;
constexpr size_t k_sealed_size = k_header_size + crypto::KeyDerivationKey::k_size + crypto::k_gcm_tag_size;

// Under the TPM: behind the header the sealed object (tagged fields of TpmSealed), then the key under what it seals.
constexpr size_t k_object_size_at = 44;
constexpr size_t k_sealed_key_size = crypto::KeyDerivationKey::k_size + crypto::k_gcm_tag_size;
constexpr size_t k_max_size = k_header_size + TpmSealed::k_max_size + k_sealed_key_size;

enum class Protection : uint8_t { None = 0, Passphrase = 1, HostTpm = 2 };

void write_header(MutBytes to, KdkIdentity const& identity, Protection protection) {
    std::memcpy(to.data(), k_magic.data(), k_magic.size());
    store_le<uint32_t>(to, k_version_at, k_format_version);
    store_le<uint32_t>(to, k_kdk_version_at, identity.version);
    std::memcpy(to.data() + k_provider_at, identity.provider.bytes().data(), Uuid::k_size);
    store_le<uint8_t>(to, k_protection_at, static_cast<uint8_t>(protection));
}

Result<crypto::AeadKey> passphrase_key(crypto::SecretBytes const& passphrase, Bytes salt, crypto::ScryptCost cost) {
    auto key = crypto::AeadKey::adopt(TRY(crypto::scrypt(passphrase, salt, cost, crypto::AeadKey::k_size)));
    COFFER_ASSERT(key.has_value());
    return std::move(*key);
}

Error changed(std::filesystem::path const& path) {
    return make_error(ErrorCode::Integrity,
                      "{}: the provider's key file was changed or damaged, or belongs to another provider; put back an "
                      "intact copy",
                      path.native());
}

Result<crypto::SecretBytes> read_key_file(std::filesystem::path const& path) {
    auto fd = open_file(path, O_RDONLY | O_NOFOLLOW | O_NOCTTY);
    if (!fd) {
        if (fd.error().code() == ErrorCode::NotFound)
            return make_error(ErrorCode::KeyUnavailable, "the provider's key file {} is missing", path.native());
        return std::move(fd).error();
    }
    struct stat info {};
    if (::fstat(fd->get(), &info) != 0) return errno_error(errno, fmt::format("cannot stat {}", path.native()));
    if (!S_ISREG(info.st_mode)) return changed(path);
    if ((info.st_mode & 077) != 0)
        return make_error(ErrorCode::Permission,
                          "{} has mode {:04o}, so that others may use the key: run 'chmod 600 {}', and make a new "
                          "provider if others may have read it",
                          path.native(), info.st_mode & 07777, path.native());
    if (info.st_size < static_cast<off_t>(k_sealed_size) || info.st_size > static_cast<off_t>(k_max_size))
        return changed(path);
    crypto::SecretBytes content(static_cast<size_t>(info.st_size));
    TRY(pread_all(fd->get(), content.expose_mutable(), 0, path));
    return content;
}

Result<crypto::KeyDerivationKey> open_sealed(std::filesystem::path const& path, crypto::AeadKey const& key,
                                             Bytes before, Bytes sealed) {
    auto kdk = crypto::KeyDerivationKey::adopt(TRY(crypto::gcm_open(key, {}, before, sealed)));
    if (!kdk) return changed(path);
    return std::move(*kdk);
}

Result<crypto::KeyDerivationKey> load_from_tpm(std::filesystem::path const& path, Bytes file, TpmSource const& tpm) {
    size_t const object_size = load_le<uint32_t>(file, k_object_size_at);
    if (object_size != file.size() - k_header_size - k_sealed_key_size) return changed(path);
    TpmSealed object;
    if (!decode_fields(file.subspan(k_header_size, object_size), object)) return changed(path);
    if (!tpm)
        return make_error(ErrorCode::KeyUnavailable, "{} is sealed to the host's TPM, which is out of reach here",
                          path.native());
    auto* host = TRY(tpm());
    auto secret = host->unseal(object);
    if (!secret) return std::move(secret).error().with_context(path.native());
    auto key = crypto::AeadKey::adopt(std::move(*secret));
    if (!key) return changed(path);
    auto kdk = open_sealed(path, *key, file.first(k_header_size + object_size), file.last(k_sealed_key_size));
    if (!kdk && kdk.error().code() == ErrorCode::Integrity) return changed(path);
    return kdk;
}

} // namespace

Result<crypto::SecretBytes> seal_kdk_to_tpm(KdkIdentity const& identity, crypto::KeyDerivationKey const& kdk,
                                            HostTpm& tpm) {
    auto key = TRY(crypto::AeadKey::random());
    auto const object = encode_fields(TRY(tpm.seal(key.expose())));
    if (object.size() > TpmSealed::k_max_size)
        return make_error(ErrorCode::Internal, "the TPM's sealed object has {} bytes", object.size());
    crypto::SecretBytes file(k_header_size + object.size() + k_sealed_key_size);
    MutBytes const to = file.expose_mutable();
    write_header(to, identity, Protection::HostTpm);
    store_le<uint32_t>(to, k_object_size_at, static_cast<uint32_t>(object.size()));
    std::memcpy(to.data() + k_header_size, object.data(), object.size());
    // The nonce may be zeros: the key is a fresh one.
    auto const sealed = TRY(crypto::gcm_seal(key, {}, to.first(k_header_size + object.size()), kdk.expose()));
    std::memcpy(to.last(sealed.size()).data(), sealed.data(), sealed.size());
    return file;
}

Result<crypto::SecretBytes> seal_kdk(KdkIdentity const& identity, crypto::KeyDerivationKey const& kdk,
                                     crypto::SecretBytes const* passphrase) {
    if (!passphrase) {
        crypto::SecretBytes file(k_plain_size);
        MutBytes const to = file.expose_mutable();
        write_header(to, identity, Protection::None);
        std::memcpy(to.data() + k_header_size, kdk.expose().data(), crypto::KeyDerivationKey::k_size);
        auto digest = TRY(crypto::sha256({to.first(k_plain_size - crypto::k_digest_size)}));
        std::memcpy(to.last(digest.size()).data(), digest.data(), digest.size());
        return file;
    }
    if (passphrase->empty()) return make_error(ErrorCode::InvalidArgument, "an empty passphrase protects nothing");
    crypto::SecretBytes file(k_sealed_size);
    MutBytes const to = file.expose_mutable();
    crypto::ScryptCost const cost;
    write_header(to, identity, Protection::Passphrase);
    store_le<uint8_t>(to, k_log2_n_at, cost.log2_n);
    store_le<uint32_t>(to, k_r_at, cost.r);
    store_le<uint32_t>(to, k_p_at, cost.p);
    TRY(crypto::random_bytes(to.subspan(k_salt_at, k_salt_size)));
    auto key = TRY(passphrase_key(*passphrase, to.subspan(k_salt_at, k_salt_size), cost));
    // The nonce may be zeros: the salt makes the key a fresh one.
    auto sealed = TRY(crypto::gcm_seal(key, {}, to.first(k_header_size), kdk.expose()));
    COFFER_ASSERT(sealed.size() == to.size() - k_header_size);
    std::memcpy(to.data() + k_header_size, sealed.data(), sealed.size());
    return file;
}

Result<crypto::KeyDerivationKey> load_kdk(std::filesystem::path const& path, KdkIdentity const& identity,
                                          PassphraseSource const& passphrase, TpmSource const& tpm) {
    auto file = TRY(read_key_file(path));
    return detail::open_kdk(path, file.expose(), identity, passphrase, tpm);
}

Result<crypto::KeyDerivationKey> detail::open_kdk(std::filesystem::path const& path, Bytes bytes,
                                                  KdkIdentity const& identity, PassphraseSource const& passphrase,
                                                  TpmSource const& tpm) {
    if (bytes.size() < k_sealed_size || bytes.size() > k_max_size) return changed(path);
    if (std::memcmp(bytes.data(), k_magic.data(), k_magic.size()) != 0 ||
        load_le<uint32_t>(bytes, k_version_at) != k_format_version ||
        load_le<uint32_t>(bytes, k_kdk_version_at) != identity.version ||
        std::memcmp(bytes.data() + k_provider_at, identity.provider.bytes().data(), Uuid::k_size) != 0)
        return changed(path);
    auto protection = load_le<uint8_t>(bytes, k_protection_at);
    if (protection == static_cast<uint8_t>(Protection::None) && bytes.size() == k_plain_size) {
        auto digest = TRY(crypto::sha256({bytes.first(k_plain_size - crypto::k_digest_size)}));
        if (!crypto::equal_in_constant_time(digest, bytes.last(digest.size()))) return changed(path);
        auto kdk = crypto::KeyDerivationKey::adopt(
            crypto::SecretBytes::copy_of(bytes.subspan(k_header_size, crypto::KeyDerivationKey::k_size)));
        return std::move(*kdk);
    }
    if (protection == static_cast<uint8_t>(Protection::HostTpm)) return load_from_tpm(path, bytes, tpm);
    if (protection != static_cast<uint8_t>(Protection::Passphrase) || bytes.size() != k_sealed_size)
        return changed(path);
    crypto::ScryptCost const cost{load_le<uint8_t>(bytes, k_log2_n_at), load_le<uint32_t>(bytes, k_r_at),
                                  load_le<uint32_t>(bytes, k_p_at)};
    if (!cost.acceptable()) return changed(path);
    auto secret = TRY(passphrase("the passphrase of the key provider"));
    auto key = TRY(passphrase_key(secret, bytes.subspan(k_salt_at, k_salt_size), cost));
    auto kdk = open_sealed(path, key, bytes.first(k_header_size), bytes.subspan(k_header_size));
    if (!kdk && kdk.error().code() == ErrorCode::Integrity)
        return make_error(ErrorCode::KeyUnavailable, "the passphrase is wrong, or {} was changed", path.native());
    return kdk;
}

} // namespace coffer
