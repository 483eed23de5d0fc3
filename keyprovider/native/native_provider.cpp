#include "keyprovider/native/native_provider.hpp"

#include <algorithm>

#include "base/file.hpp"
#include "crypto/kdf.hpp"
#include "crypto/key_wrap.hpp"
#include "crypto/random.hpp"

namespace coffer {

namespace {

// A provider has one KDK so far; the number is in key ids and file names, so that further ones can stand beside it.
constexpr uint32_t k_kdk_version = 1;
constexpr std::string_view k_kek_label = "coffer native provider KEK";

std::filesystem::path kdk_path(std::filesystem::path const& folder) {
    return folder / fmt::format("kdk.{}", k_kdk_version);
}

std::optional<Uuid> key_uuid(KeyId const& kek) {
    auto prefix = fmt::format("{}/", k_kdk_version);
    if (!kek.text().starts_with(prefix)) return std::nullopt;
    return Uuid::parse(std::string_view(kek.text()).substr(prefix.size()));
}

} // namespace

Result<void> NativeProvider::create(std::filesystem::path const& folder, Uuid const& id,
                                    crypto::SecretBytes const* passphrase) {
    auto kdk = TRY(crypto::KeyDerivationKey::random());
    auto file = TRY(seal_kdk({id, k_kdk_version}, kdk, passphrase));
    return replace_file(kdk_path(folder), file.expose(), 0600);
}

Result<KeyId> NativeProvider::create_kek(std::string_view) {
    // Derived keys need no record at the provider, and so no label.
    return KeyId::parse(fmt::format("{}/{}", k_kdk_version, TRY(crypto::random_uuid()).to_string()));
}

Result<crypto::KeyEncryptionKey> NativeProvider::derive(KeyId const& kek) {
    auto uuid = key_uuid(kek);
    if (!uuid)
        return make_error(ErrorCode::KeyUnavailable,
                          "the provider has no key '{}': another provider made it, or a "
                          "newer coffer",
                          kek.text());
    if (!m_kdk) m_kdk = TRY(load_kdk(kdk_path(m_folder), {m_id, k_kdk_version}, m_passphrase));
    std::array<std::byte, 2 * Uuid::k_size> context{};
    std::copy(m_id.bytes().begin(), m_id.bytes().end(), context.begin());
    std::copy(uuid->bytes().begin(), uuid->bytes().end(), context.begin() + Uuid::k_size);
    auto key = crypto::KeyEncryptionKey::adopt(TRY(
        crypto::kbkdf_hmac_sha256(m_kdk->expose(), as_bytes(k_kek_label), context, crypto::KeyEncryptionKey::k_size)));
    COFFER_ASSERT(key.has_value());
    return std::move(*key);
}

Result<WrappedKey> NativeProvider::wrap(KeyId const& kek, crypto::BundleKey const& key) {
    auto derived = TRY(derive(kek));
    return WrappedKey{TRY(crypto::kwp_wrap(derived, key))};
}

Result<crypto::BundleKey> NativeProvider::unwrap(KeyId const& kek, WrappedKey const& wrapped) {
    auto derived = TRY(derive(kek));
    return crypto::kwp_unwrap(derived, wrapped.bytes);
}

} // namespace coffer
