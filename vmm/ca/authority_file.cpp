#include "vmm/ca/authority_file.hpp"

#include <algorithm>

#include "base/tagged.hpp"
#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"
#include "crypto/mac.hpp"
#include "crypto/random.hpp"
#include "keyprovider/key_provider.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

namespace {

constexpr auto k_magic = home_spec::magic("COFRAUTH");
constexpr uint32_t k_version = 1;
constexpr size_t k_version_at = 8;
constexpr size_t k_header_size_at = 12;
constexpr size_t k_sealed_size_at = 16;
constexpr size_t k_digest_at = 32; // SHA-256 over [0, 32) and the header: finds damage, proves nothing
static_assert(k_digest_at + crypto::k_digest_size == k_authority_prefix_size);
constexpr std::string_view k_seal_info = "coffer authority 1 keys"; // HKDF info of the sealing key
constexpr size_t k_max_chain = 8;

Error damaged_authority(std::filesystem::path const& path, std::string_view what) {
    return make_error(ErrorCode::Integrity,
                      "{}: {}: it was changed or damaged. Nothing was overwritten; put back an intact copy",
                      path.native(), what);
}

Result<crypto::AeadKey> sealing_key(crypto::BundleKey const& key, AuthorityHeader const& header) {
    return crypto::derive_key<crypto::AeadKey>(key.expose(), header.salt, k_seal_info);
}

} // namespace

Result<ParsedAuthority> parse_authority(Bytes file, std::filesystem::path const& path) {
    if (file.size() < k_authority_prefix_size) return damaged_authority(path, "the file is too short");
    if (!std::equal(k_magic.begin(), k_magic.end(), file.begin()))
        return damaged_authority(path, "the file does not begin as a certificate authority's does");
    if (auto version = load_le<uint32_t>(file, k_version_at); version != k_version)
        return make_error(ErrorCode::Integrity,
                          "{}: the file says that it has format version {}, and this coffer knows version {}: it was "
                          "changed, or a newer coffer wrote it. Nothing was overwritten",
                          path.native(), version, k_version);
    size_t const header_size = load_le<uint32_t>(file, k_header_size_at);
    size_t const sealed_size = load_le<uint32_t>(file, k_sealed_size_at);
    if (header_size > k_max_authority_header || sealed_size > k_max_authority_keys ||
        file.size() != k_authority_prefix_size + header_size + sealed_size)
        return damaged_authority(path, "the file has another size than it says");
    Bytes const header = file.subspan(k_authority_prefix_size, header_size);
    auto const digest = TRY(crypto::sha256({file.first(k_digest_at), header}));
    if (!crypto::equal_in_constant_time(digest, file.subspan(k_digest_at, digest.size())))
        return damaged_authority(path, "the file's header does not match its checksum");
    ParsedAuthority parsed;
    parsed.authenticated = file.first(k_authority_prefix_size + header_size);
    parsed.sealed = file.last(sealed_size);
    if (!decode_fields(header, parsed.header) || !KeyId::parse(parsed.header.key_id) ||
        parsed.header.wrapped_key.size() > WrappedKey::k_max_size || parsed.header.chain.empty() ||
        parsed.header.chain.size() > k_max_chain || parsed.header.origin > AuthorityOrigin::Imported)
        return damaged_authority(path, "the file's header is malformed");
    return parsed;
}

Result<AuthorityKeys> open_authority(ParsedAuthority const& parsed, crypto::BundleKey const& key,
                                     std::filesystem::path const& path) {
    auto const seal = TRY(sealing_key(key, parsed.header));
    auto opened = crypto::gcm_open(seal, {}, parsed.authenticated, parsed.sealed);
    if (!opened) {
        if (opened.error().code() != ErrorCode::Integrity) return std::move(opened).error();
        return damaged_authority(path, "the file fails authentication");
    }
    Bytes rest = opened->expose();
    AuthorityKeys keys;
    for (auto* to : {&keys.signing, &keys.root}) {
        if (rest.size() < 4 || rest.size() - 4 < load_le<uint32_t>(rest))
            return damaged_authority(path, "the file's keys are malformed");
        auto const size = load_le<uint32_t>(rest);
        *to = crypto::SecretBytes::copy_of(rest.subspan(4, size));
        rest = rest.subspan(4 + size);
    }
    if (!rest.empty() || keys.signing.empty()) return damaged_authority(path, "the file's keys are malformed");
    return keys;
}

Result<ByteVector> seal_authority(AuthorityHeader& header, AuthorityKeys const& keys, crypto::BundleKey const& key) {
    TRY(crypto::random_bytes(header.salt));
    auto const fields = encode_fields(header);
    crypto::SecretBytes plaintext(8 + keys.signing.size() + keys.root.size());
    auto to = plaintext.expose_mutable();
    for (auto const* part : {&keys.signing, &keys.root}) {
        store_le<uint32_t>(to, 0, static_cast<uint32_t>(part->size()));
        if (!part->empty()) std::memcpy(to.data() + 4, part->expose().data(), part->size());
        to = to.subspan(4 + part->size());
    }
    size_t const sealed_size = plaintext.size() + crypto::k_gcm_tag_size;
    if (fields.size() > k_max_authority_header || sealed_size > k_max_authority_keys)
        return make_error(ErrorCode::InvalidArgument,
                          "the certificates of the authority, or its keys, are larger than any authority needs");
    ByteVector file(k_authority_prefix_size);
    std::memcpy(file.data(), k_magic.data(), k_magic.size());
    store_le<uint32_t>(file, k_version_at, k_version);
    store_le<uint32_t>(file, k_header_size_at, static_cast<uint32_t>(fields.size()));
    store_le<uint32_t>(file, k_sealed_size_at, static_cast<uint32_t>(sealed_size));
    auto const digest = TRY(crypto::sha256({Bytes(file).first(k_digest_at), fields}));
    std::memcpy(file.data() + k_digest_at, digest.data(), digest.size());
    append(file, fields);
    auto const seal = TRY(sealing_key(key, header));
    append(file, TRY(crypto::gcm_seal(seal, {}, file, plaintext.expose())));
    return file;
}

} // namespace coffer::vmm
