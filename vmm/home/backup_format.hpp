// The header of a backup file: what it holds, readable without keys (docs/formats/backup.md). Pure functions of bytes.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "crypto/keys.hpp"
#include "crypto/mac.hpp"
#include "keyprovider/registry.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm {

namespace backup_spec {
constexpr home_spec::Magic k_magic = home_spec::magic("COFRBKUP");
constexpr uint32_t k_version = 1;
constexpr size_t k_version_at = 8;
constexpr size_t k_fields_size_at = 12;
constexpr size_t k_mac_kind_at = 16;
constexpr size_t k_reserved_at = 17;
constexpr size_t k_digest_at = 32; // SHA-256 over [0, 32) and the fields: finds damage, proves nothing
constexpr size_t k_fields_at = 64;
constexpr size_t k_header_size = 32768;
constexpr size_t k_mac_at = k_header_size - crypto::k_digest_size; // over [0, k_mac_at)
constexpr size_t k_max_fields = 24576;
static_assert(k_fields_at + k_max_fields <= k_mac_at);

constexpr uint64_t k_part_alignment = 4096;
constexpr size_t k_max_parts = 64;
constexpr size_t k_salt_size = 32;

// A disk's content, in chunks; those that are all zeros are left out.
constexpr uint64_t k_chunk_size = 65536;
constexpr size_t k_chunk_number_size = 8;
constexpr size_t k_chunk_tag_size = 16;
constexpr uint64_t k_chunk_overhead = k_chunk_number_size + k_chunk_tag_size;
constexpr uint64_t k_max_disk = uint64_t{1} << 46;

constexpr std::string_view k_key_info = "coffer backup 1"; // HKDF infos
constexpr std::string_view k_mac_info = "coffer backup 1 mac";
constexpr std::string_view k_disk_info = "coffer backup 1 disk";
} // namespace backup_spec

enum class BackupPartKind : uint8_t {
    Keys = 1, // the home's `keys`, as it was
    Data = 2, // a data file of the home, as it was
    Disk = 3, // a disk image: of the host's as it was read, of the home's the file as it was
};

struct BackupPart {
    std::string name; // the home's name of the file; "disk-N" for the N-th disk, from 0
    BackupPartKind kind = BackupPartKind::Data;
    uint64_t offset = 0;       // in the backup, bytes
    uint64_t stored_size = 0;  // there, bytes
    uint64_t content_size = 0; // bytes
    uint64_t generation = 0;   // of a data file
    int64_t written = 0;       // of a data file: seconds since 1970-01-01 UTC
    uint64_t chunks = 0;       // of a disk
    Uuid salt;                 // of a disk's key
    crypto::Digest digest{};   // SHA-256 of the stored bytes; of a disk, chained over its chunks' numbers and tags

    template <class V>
    void fields(V& v) {
        v.required(1, name);
        v.required(2, kind);
        v.required(3, offset);
        v.required(4, stored_size);
        v.required(5, content_size);
        v.required(6, generation);
        v.required(7, written);
        v.required(8, chunks);
        v.required(9, salt);
        v.required(10, digest);
    }
};

struct BackupHeader {
    int64_t created = 0; // seconds since 1970-01-01 UTC
    Uuid vm;
    std::string name;
    bool encrypted = false;
    // Of encrypted homes.
    Uuid provider;
    std::string provider_name;
    ProviderKind provider_kind = ProviderKind::Native;
    std::string key_id;
    uint64_t sequence = 0;
    std::array<std::byte, backup_spec::k_salt_size> salt{};
    std::vector<BackupPart> parts;

    template <class V>
    void fields(V& v) {
        v.required(1, created);
        v.required(2, vm);
        v.required(3, name);
        v.required(4, encrypted);
        v.required(5, provider);
        v.required(6, provider_name);
        v.required(7, provider_kind);
        v.required(8, key_id);
        v.required(9, sequence);
        v.required(10, salt);
        v.required(11, parts);
    }

    BackupPart const* find(std::string_view part) const noexcept;
    uint64_t file_size() const noexcept; // bytes
};

// Root of a backup's own keys: HKDF of the home's bundle key with the backup's salt.
using BackupKey = crypto::Key<struct BackupTag, 32>;
Result<BackupKey> derive_backup_key(crypto::BundleKey const& bundle, Bytes salt);

// The header's bytes, k_header_size of them, authenticated by `key`; without a key (unencrypted homes), by SHA-256,
// which finds damage and proves nothing. InvalidArgument where the header is too long.
Result<ByteVector> encode_backup_header(BackupHeader const& header, BackupKey const* key);

// Well-formed, undamaged, of a file of this size; not authentic yet. Integrity, naming `path`.
Result<BackupHeader> parse_backup_header(Bytes bytes, uint64_t file_size, std::filesystem::path const& path);
// That the header of which these are the bytes is authentic. Integrity, naming `path`.
Result<void> authenticate_backup_header(Bytes bytes, BackupKey const* key, std::filesystem::path const& path);

// "PATH: WHAT: the backup was changed or damaged, and nothing was written".
Error damaged_backup(std::filesystem::path const& path, std::string_view what);

} // namespace coffer::vmm
