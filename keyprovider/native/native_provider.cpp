#include "keyprovider/native/native_provider.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

#include "crypto/kdf.hpp"
#include "crypto/key_wrap.hpp"
#include "crypto/random.hpp"

namespace coffer {

namespace {

constexpr std::string_view k_kek_label = "coffer native provider KEK";

struct NativeKeyId {
    uint32_t version;
    Uuid key;
};

std::optional<NativeKeyId> parse_key_id(std::string_view text) {
    auto const slash = text.find('/');
    if (slash == std::string_view::npos) return std::nullopt;
    NativeKeyId id{};
    auto parsed = std::from_chars(text.data(), text.data() + slash, id.version);
    auto key = Uuid::parse(text.substr(slash + 1));
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + slash || id.version == 0 || !key) return std::nullopt;
    id.key = *key;
    return id;
}

} // namespace

uint32_t NativeProvider::kdk_version_of(std::string_view key_id) noexcept {
    auto id = parse_key_id(key_id);
    return id ? id->version : 0;
}

Result<KeyId> NativeProvider::create_kek(std::string_view) {
    if (m_info.require_backup && m_info.lacks_backup())
        return make_error(ErrorCode::KeyUnavailable,
                          "key provider '{}' has {}, and gives no new keys before it has one: run 'coffer provider "
                          "backup' first",
                          m_info.name, m_info.backed_up_version == 0 ? "no backup" : "no backup of its newest key");
    // Derived keys need no record at the provider, and so no label.
    return KeyId::parse(fmt::format("{}/{}", m_info.kdk_version, TRY(crypto::random_uuid()).to_string()));
}

Result<crypto::KeyEncryptionKey> NativeProvider::derive(KeyId const& kek) {
    auto id = parse_key_id(kek.text());
    if (!id)
        return make_error(ErrorCode::KeyUnavailable,
                          "the provider has no key '{}': another provider made it, or a "
                          "newer coffer",
                          kek.text());
    auto kdk = m_kdks.find(id->version);
    if (kdk == m_kdks.end()) kdk = m_kdks.emplace(id->version, TRY(m_store.load(id->version))).first;
    std::array<std::byte, 2 * Uuid::k_size> context{};
    std::copy(m_info.id.bytes().begin(), m_info.id.bytes().end(), context.begin());
    std::copy(id->key.bytes().begin(), id->key.bytes().end(), context.begin() + Uuid::k_size);
    auto key = crypto::KeyEncryptionKey::adopt(TRY(crypto::kbkdf_hmac_sha256(
        kdk->second.expose(), as_bytes(k_kek_label), context, crypto::KeyEncryptionKey::k_size)));
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
