#include "vmm/ca/authority_store.hpp"

#include <cerrno>
#include <fcntl.h>

#include "base/clock.hpp"
#include "base/file.hpp"
#include "vmm/home/folder_lock.hpp"
#include "crypto/random.hpp"

namespace coffer::vmm {

namespace {

// What the provider's key is called at a key server.
constexpr char const* k_key_label = "certificate-authority";

Result<std::vector<crypto::Certificate>> parse_all(std::vector<ByteVector> const& chain,
                                                   std::filesystem::path const& path) {
    std::vector<crypto::Certificate> certificates;
    for (auto const& der : chain) {
        auto certificate = crypto::Certificate::parse_der(der);
        if (!certificate)
            return make_error(ErrorCode::Integrity, "{}: a certificate in it is malformed: it was changed or damaged",
                              path.native());
        certificates.push_back(std::move(*certificate));
    }
    return certificates;
}

struct NewAuthority {
    std::vector<crypto::Certificate> chain;
    AuthorityKeys keys;
};

// A root and an authority below it. Their names tell hosts apart and nothing about them.
Result<NewAuthority> make_new() {
    auto const id = TRY(crypto::random_uuid()).to_string().substr(0, 8);
    auto const now = wall_clock_seconds();
    auto const root_key = TRY(crypto::SigningKey::generate());
    crypto::CertificateContent content;
    content.not_before = now;
    content.common_name = "Coffer TPM root " + id;
    content.public_key = TRY(root_key.public_key());
    content.extensions = crypto::authority_extensions(1);
    auto root = TRY(crypto::issue_certificate(content, root_key, nullptr));
    auto const key = TRY(crypto::SigningKey::generate());
    content.common_name = "Coffer TPM authority " + id;
    content.public_key = TRY(key.public_key());
    content.extensions = crypto::authority_extensions(0);
    NewAuthority made;
    made.chain.push_back(TRY(crypto::issue_certificate(content, root_key, &root)));
    made.chain.push_back(std::move(root));
    made.keys.signing = TRY(key.to_der());
    made.keys.root = TRY(root_key.to_der());
    return made;
}

} // namespace

Result<std::optional<AuthorityStore::Loaded>> AuthorityStore::load() const {
    auto bytes = read_file(path(), k_max_authority_file);
    if (!bytes) {
        if (bytes.error().code() == ErrorCode::NotFound) return std::optional<Loaded>();
        if (bytes.error().code() != ErrorCode::Corrupt) return std::move(bytes).error();
        return make_error(ErrorCode::Integrity, "{} cannot be a certificate authority's file", path().native());
    }
    Loaded loaded{std::move(*bytes), {}};
    loaded.parsed = TRY(parse_authority(loaded.bytes, path()));
    return std::optional(std::move(loaded));
}

Result<std::optional<AuthorityInfo>> AuthorityStore::info() const {
    auto const loaded = TRY(load());
    if (!loaded) return std::optional<AuthorityInfo>();
    auto const& header = loaded->parsed.header;
    AuthorityInfo info{header.provider, header.key_id, header.written, header.origin, {}};
    info.chain = TRY(parse_all(header.chain, path()));
    return std::optional(std::move(info));
}

Result<AuthorityKeys> AuthorityStore::unseal_keys(KeeperProcess& keeper, Loaded const& loaded) const {
    auto const& header = loaded.parsed.header;
    BundleHeader wrapped;
    wrapped.provider = header.provider;
    wrapped.key_id = header.key_id;
    wrapped.wrapped_key = header.wrapped_key;
    auto const bundle_key =
        TRY_CONTEXT(keeper.unwrap(wrapped), "cannot open this host's certificate authority, which TPMs are made with");
    return open_authority(loaded.parsed, bundle_key, path());
}

Result<Authority> AuthorityStore::unseal(KeeperProcess& keeper, Loaded const& loaded) const {
    auto const keys = TRY(unseal_keys(keeper, loaded));
    auto authority = Authority::create(TRY(crypto::SigningKey::parse_der(keys.signing.expose())),
                                       TRY(parse_all(loaded.parsed.header.chain, path())));
    if (!authority)
        return make_error(ErrorCode::Integrity, "{}: {}", path().native(), std::move(authority).error().message());
    return authority;
}

Result<AuthorityStore::Loaded> AuthorityStore::load_existing() const {
    auto loaded = TRY(load());
    if (!loaded)
        return make_error(
            ErrorCode::NotFound,
            "this host has no certificate authority yet: the first TPM that is made makes it, and 'coffer "
            "ca import' brings your own");
    return std::move(*loaded);
}

Result<Authority> AuthorityStore::open(KeeperProcess& keeper) const {
    auto const loaded = TRY(load());
    if (!loaded)
        return make_error(
            ErrorCode::NotFound,
            "this host has no certificate authority yet: the first TPM that is made makes it, and 'coffer "
            "ca import' brings your own");
    return unseal(keeper, *loaded);
}

Result<AuthorityStore::Opened> AuthorityStore::open_or_make(KeeperProcess& keeper, Uuid const& provider) const {
    auto const held = TRY(lock_folder(m_folder));
    auto const loaded = TRY(load());
    if (loaded) return Opened{TRY(unseal(keeper, *loaded)), false};
    auto made = TRY(make_new());
    TRY(write(keeper, provider, AuthorityOrigin::Own, made.chain, made.keys));
    auto key = TRY(crypto::SigningKey::parse_der(made.keys.signing.expose()));
    return Opened{TRY(Authority::create(std::move(key), std::move(made.chain))), true};
}

Result<void> AuthorityStore::protect(KeeperProcess& keeper, Uuid const& provider) const {
    auto const held = TRY(lock_folder(m_folder));
    auto const loaded = TRY(load_existing());
    auto const keys = TRY(unseal_keys(keeper, loaded));
    auto const chain = TRY(parse_all(loaded.parsed.header.chain, path()));
    return write(keeper, provider, loaded.parsed.header.origin, chain, keys);
}

Result<void> AuthorityStore::import(KeeperProcess& keeper, Uuid const& provider, Authority const& authority) const {
    auto const held = TRY(lock_folder(m_folder));
    AuthorityKeys keys;
    keys.signing = TRY(authority.key().to_der());
    return write(keeper, provider, AuthorityOrigin::Imported, authority.chain(), keys);
}

Result<void> AuthorityStore::write(KeeperProcess& keeper, Uuid const& provider, AuthorityOrigin origin,
                                   std::vector<crypto::Certificate> const& chain, AuthorityKeys const& keys) const {
    auto const seal = TRY_CONTEXT(keeper.make_seal(provider, k_key_label), "cannot protect the certificate authority");
    AuthorityHeader header;
    header.provider = provider;
    header.key_id = seal.key_id.text();
    header.wrapped_key = seal.wrapped.bytes;
    header.written = wall_clock_seconds();
    header.origin = origin;
    for (auto const& certificate : chain) header.chain.push_back(TRY(certificate.to_der()));
    return replace_file(path(), TRY(seal_authority(header, keys, seal.key)));
}

} // namespace coffer::vmm
