// Keys as types: one cannot be passed for another, copied, compared or printed (tests/style proves it).
#pragma once

#include <optional>

#include "crypto/secret.hpp"

namespace coffer::crypto {

template <class Tag, size_t N>
class Key {
public:
    static constexpr size_t k_size = N;

    Key(Key&&) noexcept = default;
    Key& operator=(Key&&) noexcept = default;
    Key(Key const&) = delete;
    Key& operator=(Key const&) = delete;
    bool operator==(Key const&) const = delete;
    ~Key() = default;

    static Result<Key> random() { return Key(TRY(SecretBytes::random(N))); }
    // Nothing where the size is another.
    static std::optional<Key> adopt(SecretBytes bytes) {
        if (bytes.size() != N) return std::nullopt;
        return Key(std::move(bytes));
    }

    // See SecretBytes::expose().
    Bytes expose() const noexcept { return m_bytes.expose(); }

private:
    explicit Key(SecretBytes bytes) : m_bytes(std::move(bytes)) {}

    SecretBytes m_bytes;
};

// The native provider's seed. Only in the keeper process.
using KeyDerivationKey = Key<struct KdkTag, 32>;
// Wraps bundle keys. Comes from a provider; only in the keeper process.
using KeyEncryptionKey = Key<struct KekTag, 32>;
// The one key of a home that a provider wraps; opens its `keys` file.
using BundleKey = Key<struct BundleTag, 32>;
// Root of the keys of a home's files, one an epoch.
using DataEncryptionKey = Key<struct DekTag, 64>;
// A file's own cipher key: two AES-256 keys that differ, as IEEE 1619 and SP 800-38E want.
using XtsKey = Key<struct XtsTag, 64>;
using MacKey = Key<struct MacTag, 32>;
using AeadKey = Key<struct AeadTag, 32>;

} // namespace coffer::crypto
