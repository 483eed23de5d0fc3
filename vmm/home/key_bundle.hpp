// The `keys` file as bytes: a header that anyone may read, and the data encryption keys and the manifest of files
// sealed under the bundle key (docs/formats/home.md, "keys"). Pure functions of bytes; no file is touched.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/uuid.hpp"
#include "crypto/keys.hpp"
#include "keyprovider/key_provider.hpp"
#include "vmm/home/home_history.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

// Readable without keys; authenticated once the bundle key is at hand.
struct BundleHeader {
    uint64_t sequence = 0; // one more at every write of the file
    Uuid vm;
    std::string name;
    Uuid provider;
    std::string key_id;
    ByteVector wrapped_key;
    std::array<std::byte, home_spec::keys::k_salt_size> salt{};
    int64_t written = 0; // seconds since 1970-01-01 UTC

    template <class V>
    void fields(V& v) {
        v.required(1, sequence);
        v.required(2, vm);
        v.required(3, name);
        v.required(4, provider);
        v.required(5, key_id);
        v.required(6, wrapped_key);
        v.required(7, salt);
        v.required(8, written);
    }
};

// Which writing of a file is the current one.
struct ManifestEntry {
    std::string name;
    uint64_t generation = 0;
    Uuid file;          // the file UUID of that writing
    uint32_t epoch = 0; // whose key it is under; 0: only the file says
    home_spec::data::Layout layout = home_spec::data::Layout::WholeRewrite;

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, generation);
        v.required(3, file);
        v.field(4, epoch);
        v.field(5, layout);
    }
    bool operator==(ManifestEntry const&) const = default;
};

struct Manifest {
    uint32_t current_epoch = 1; // new writings use this epoch's key
    std::vector<ManifestEntry> files;
    std::vector<HistoryEvent> events; // the newest ones, which may not be in the file `history` yet
    uint64_t event_count = 0;         // the number of the newest event

    template <class V>
    void fields(V& v) {
        v.required(1, current_epoch);
        v.required(2, files);
        v.field(3, events);
        v.field(4, event_count);
    }

    ManifestEntry const* find(std::string_view name) const noexcept;
    // Replaces the entry of that name, or adds it.
    void set(ManifestEntry entry);
    void erase(std::string_view name);
    // Numbers and dates the event. Not more than k_max_pending_events in all.
    void add_event(HistoryKind kind, std::string_view text);
};

struct EpochKey {
    uint32_t epoch = 0;
    crypto::DataEncryptionKey key;
};

struct BundleContent {
    std::vector<EpochKey> keys;
    Manifest manifest;

    crypto::DataEncryptionKey const* key_of(uint32_t epoch) const noexcept;
    // A fresh key, of an epoch that never was, becomes that of new writings. Unsupported where there are too many.
    Result<void> begin_epoch();
    // Whether a file of the manifest may be under another key than the current one.
    bool has_old_files() const noexcept;
    // Forgets (and wipes) the keys that no file of the manifest needs.
    void drop_unused_keys();
};

struct ParsedBundle {
    BundleHeader header;
    Bytes authenticated; // into the parsed bytes
    Bytes sealed;
};

// The header, well-formed and undamaged, but not yet authentic. Integrity with a message that names `path`. The result
// points into `file`.
Result<ParsedBundle> parse_bundle(Bytes file, std::filesystem::path const& path);

// Integrity where the bundle key is another one or anything in the file was changed.
Result<BundleContent> open_bundle(ParsedBundle const& parsed, crypto::BundleKey const& key,
                                  std::filesystem::path const& path);

// The whole file, under a salt that is made fresh and left in `header`: no key of GCM seals twice.
Result<ByteVector> seal_bundle(BundleHeader& header, BundleContent const& content, crypto::BundleKey const& key);

// Of the key that proves to the other end of a migration that a home can be opened (docs/migration.md).
Result<crypto::MacKey> derive_migration_key(crypto::BundleKey const& key, Uuid const& migration);

} // namespace coffer::vmm
