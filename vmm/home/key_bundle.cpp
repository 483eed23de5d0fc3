#include "vmm/home/key_bundle.hpp"

#include <algorithm>

#include "base/clock.hpp"
#include "base/tagged.hpp"
#include "crypto/aead.hpp"
#include "crypto/kdf.hpp"
#include "crypto/mac.hpp"
#include "crypto/random.hpp"
#include "vmm/home/home_errors.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

namespace {

namespace spec = home_spec::keys;
constexpr size_t k_epoch_entry_size = sizeof(uint32_t) + crypto::DataEncryptionKey::k_size;

Result<crypto::AeadKey> sealing_key(crypto::BundleKey const& key, BundleHeader const& header) {
    return crypto::derive_key<crypto::AeadKey>(key.expose(), header.salt, spec::k_seal_info);
}

// Epochs and keys, then the manifest as tagged fields. Built by hand, for keys must not pass through common memory.
crypto::SecretBytes encode_content(BundleContent const& content) {
    auto manifest = encode_fields(content.manifest);
    COFFER_ASSERT(!content.keys.empty() && content.keys.size() <= spec::k_max_epochs &&
                  manifest.size() <= spec::k_max_manifest);
    crypto::SecretBytes encoded(8 + content.keys.size() * k_epoch_entry_size + manifest.size());
    MutBytes const to = encoded.expose_mutable();
    size_t at = 0;
    auto put_u32 = [&](uint32_t value) {
        store_le<uint32_t>(to, at, value);
        at += 4;
    };
    auto put = [&](Bytes bytes) {
        std::memcpy(to.subspan(at, bytes.size()).data(), bytes.data(), bytes.size());
        at += bytes.size();
    };
    put_u32(static_cast<uint32_t>(content.keys.size()));
    for (auto const& entry : content.keys) {
        put_u32(entry.epoch);
        put(entry.key.expose());
    }
    put_u32(static_cast<uint32_t>(manifest.size()));
    put(manifest);
    COFFER_ASSERT(at == to.size());
    return encoded;
}

bool known_layout(home_spec::data::Layout layout) noexcept {
    return layout == home_spec::data::Layout::WholeRewrite || layout == home_spec::data::Layout::Image;
}

Result<BundleContent> decode_content(Bytes from, std::filesystem::path const& path) {
    auto malformed = [&] { return damaged(path, "the sealed part of the keys file is malformed"); };
    BundleContent content;
    if (from.size() < 8) return malformed();
    auto count = load_le<uint32_t>(from);
    from = from.subspan(4);
    if (count == 0 || count > spec::k_max_epochs || from.size() < count * k_epoch_entry_size + 4) return malformed();
    for (uint32_t i = 0; i < count; ++i) {
        auto epoch = load_le<uint32_t>(from);
        auto key = crypto::DataEncryptionKey::adopt(
            crypto::SecretBytes::copy_of(from.subspan(4, crypto::DataEncryptionKey::k_size)));
        if (content.key_of(epoch)) return malformed();
        content.keys.push_back({epoch, std::move(*key)});
        from = from.subspan(k_epoch_entry_size);
    }
    if (load_le<uint32_t>(from) != from.size() - 4) return malformed();
    if (!decode_fields(from.subspan(4), content.manifest)) return malformed();
    auto const& files = content.manifest.files;
    if (files.size() > spec::k_max_manifest_files || content.manifest.events.size() > spec::k_max_pending_events ||
        !content.key_of(content.manifest.current_epoch))
        return malformed();
    for (auto const& entry : files) {
        auto same_name = [&](ManifestEntry const& other) { return other.name == entry.name; };
        if (entry.name.empty() || entry.name.size() > home_spec::k_max_file_name ||
            std::count_if(files.begin(), files.end(), same_name) != 1 || !known_layout(entry.layout))
            return malformed();
    }
    uint64_t last = 0;
    for (auto const& event : content.manifest.events) {
        if (event.number <= last || event.number > content.manifest.event_count ||
            event.text.size() > k_max_history_text)
            return malformed();
        last = event.number;
    }
    return content;
}

} // namespace

ManifestEntry const* Manifest::find(std::string_view name) const noexcept {
    auto found = std::find_if(files.begin(), files.end(), [&](auto const& entry) { return entry.name == name; });
    return found == files.end() ? nullptr : &*found;
}

void Manifest::set(ManifestEntry entry) {
    auto found = std::find_if(files.begin(), files.end(), [&](auto const& other) { return other.name == entry.name; });
    if (found == files.end())
        files.push_back(std::move(entry));
    else
        *found = std::move(entry);
}

void Manifest::erase(std::string_view name) {
    std::erase_if(files, [&](auto const& entry) { return entry.name == name; });
}

void Manifest::add_event(HistoryKind kind, std::string_view text) {
    COFFER_ASSERT(events.size() < home_spec::keys::k_max_pending_events);
    events.push_back({++event_count, wall_clock_seconds(), kind, history_text(text)});
}

Result<void> BundleContent::begin_epoch() {
    drop_unused_keys();
    if (keys.size() >= home_spec::keys::k_max_epochs)
        return make_error(ErrorCode::Unsupported,
                          "the home has files under {} data encryption keys, and cannot have more: run 'coffer rekey "
                          "--deep --all', or remove old snapshots",
                          keys.size());
    uint32_t newest = 0;
    for (auto const& entry : keys) newest = std::max(newest, entry.epoch);
    keys.push_back({newest + 1, TRY(crypto::DataEncryptionKey::random())});
    manifest.current_epoch = newest + 1;
    return {};
}

bool BundleContent::has_old_files() const noexcept {
    return std::any_of(manifest.files.begin(), manifest.files.end(),
                       [&](auto const& entry) { return entry.epoch != 0 && entry.epoch != manifest.current_epoch; });
}

void BundleContent::drop_unused_keys() {
    auto const& files = manifest.files;
    if (std::any_of(files.begin(), files.end(), [](auto const& entry) { return entry.epoch == 0; })) return;
    std::erase_if(keys, [&](auto const& key) {
        return key.epoch != manifest.current_epoch &&
               std::none_of(files.begin(), files.end(), [&](auto const& file) { return file.epoch == key.epoch; });
    });
}

crypto::DataEncryptionKey const* BundleContent::key_of(uint32_t epoch) const noexcept {
    auto found = std::find_if(keys.begin(), keys.end(), [&](auto const& entry) { return entry.epoch == epoch; });
    return found == keys.end() ? nullptr : &found->key;
}

Result<ParsedBundle> parse_bundle(Bytes file, std::filesystem::path const& path) {
    if (file.size() < spec::k_prefix_size) return damaged(path, "the file is too short");
    if (!std::equal(spec::k_magic.begin(), spec::k_magic.end(), file.begin()))
        return damaged(path, "the file does not begin as a keys file does");
    if (auto version = load_le<uint32_t>(file, spec::k_version_at); version != home_spec::k_version)
        return make_error(ErrorCode::Integrity,
                          "{}: the file says that it has format version {}, and this coffer knows version {}: it was "
                          "changed, or a newer coffer wrote it. Nothing was overwritten",
                          path.native(), version, home_spec::k_version);
    size_t header_size = load_le<uint32_t>(file, spec::k_header_size_at);
    size_t sealed_size = load_le<uint32_t>(file, spec::k_sealed_size_at);
    if (header_size > spec::k_max_header || sealed_size > spec::k_max_sealed ||
        file.size() != spec::k_prefix_size + header_size + sealed_size)
        return damaged(path, fmt::format("the file has {} bytes where {} are due", file.size(),
                                         spec::k_prefix_size + header_size + sealed_size));
    ParsedBundle parsed;
    parsed.authenticated = file.first(spec::k_prefix_size + header_size);
    parsed.sealed = file.last(sealed_size);
    Bytes const header = file.subspan(spec::k_prefix_size, header_size);
    auto digest = TRY(crypto::sha256({file.first(spec::k_digest_at), header}));
    if (!crypto::equal_in_constant_time(digest, file.subspan(spec::k_digest_at, digest.size())))
        return damaged(path, "the file's header does not match its checksum");
    if (!decode_fields(header, parsed.header) || !KeyId::parse(parsed.header.key_id) ||
        !check_vm_name(parsed.header.name) || parsed.header.wrapped_key.size() > WrappedKey::k_max_size)
        return damaged(path, "the file's header is malformed");
    return parsed;
}

Result<BundleContent> open_bundle(ParsedBundle const& parsed, crypto::BundleKey const& key,
                                  std::filesystem::path const& path) {
    auto seal = TRY(sealing_key(key, parsed.header));
    auto opened = crypto::gcm_open(seal, {}, parsed.authenticated, parsed.sealed);
    if (!opened) {
        if (opened.error().code() != ErrorCode::Integrity) return std::move(opened).error();
        return damaged(path, "the file fails authentication");
    }
    return decode_content(opened->expose(), path);
}

Result<ByteVector> seal_bundle(BundleHeader& header, BundleContent const& content, crypto::BundleKey const& key) {
    TRY(crypto::random_bytes(header.salt));
    auto fields = encode_fields(header);
    auto plaintext = encode_content(content);
    COFFER_ASSERT(fields.size() <= spec::k_max_header &&
                  plaintext.size() + crypto::k_gcm_tag_size <= spec::k_max_sealed);
    ByteVector file(spec::k_prefix_size);
    std::memcpy(file.data(), spec::k_magic.data(), spec::k_magic.size());
    store_le<uint32_t>(file, spec::k_version_at, home_spec::k_version);
    store_le<uint32_t>(file, spec::k_header_size_at, static_cast<uint32_t>(fields.size()));
    store_le<uint32_t>(file, spec::k_sealed_size_at, static_cast<uint32_t>(plaintext.size() + crypto::k_gcm_tag_size));
    auto digest = TRY(crypto::sha256({Bytes(file).first(spec::k_digest_at), fields}));
    std::memcpy(file.data() + spec::k_digest_at, digest.data(), digest.size());
    append(file, fields);
    auto seal = TRY(sealing_key(key, header));
    append(file, TRY(crypto::gcm_seal(seal, {}, file, plaintext.expose())));
    return file;
}

Result<crypto::MacKey> derive_migration_key(crypto::BundleKey const& key, Uuid const& migration) {
    return crypto::derive_key<crypto::MacKey>(key.expose(), migration.bytes(), "coffer migration 1 proof");
}

} // namespace coffer::vmm
