#include "vmm/home/backup_format.hpp"

#include <algorithm>

#include "base/tagged.hpp"
#include "crypto/kdf.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm {

namespace {

namespace spec = backup_spec;

constexpr size_t k_max_provider_name = 128;
constexpr uint64_t k_max_keys =
    home_spec::keys::k_prefix_size + home_spec::keys::k_max_header + home_spec::keys::k_max_sealed;
constexpr uint64_t k_max_data =
    home_spec::data::k_header_size + home_spec::data::k_max_content / home_spec::data::k_unit_size *
                                         (home_spec::data::k_unit_size + home_spec::data::k_tag_size);

enum class MacKind : uint8_t { Sha256 = 0, HmacSha256 = 1 };

// Bytes that the header's MAC is over come first in it, so that none stands in for another of the key's uses.
constexpr std::byte k_header_domain{1};

Result<crypto::Digest> header_mac(Bytes bytes, BackupKey const* key) {
    Bytes const covered = bytes.first(spec::k_mac_at);
    if (!key) return crypto::sha256({object_bytes(k_header_domain), covered});
    auto mac_key = TRY(crypto::derive_key<crypto::MacKey>(key->expose(), {}, spec::k_mac_info));
    auto mac = TRY(crypto::HmacSha256::create(mac_key));
    return mac.compute({object_bytes(k_header_domain), covered});
}

bool all_zero(Bytes bytes) noexcept {
    return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

// What reaches a terminal or a file's name.
bool is_printable(std::string_view text) noexcept {
    return std::none_of(text.begin(), text.end(),
                        [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7F; });
}

bool is_part_name(std::string_view name) noexcept {
    return !name.empty() && name.size() <= home_spec::k_max_file_name &&
           std::all_of(name.begin(), name.end(),
                       [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

bool has_good_sizes(BackupPart const& part) noexcept {
    switch (part.kind) {
    case BackupPartKind::Keys: return part.name == home_spec::k_keys_file && part.stored_size <= k_max_keys;
    case BackupPartKind::Data:
        return part.stored_size <= k_max_data && part.content_size <= home_spec::data::k_max_content;
    case BackupPartKind::Disk: {
        if (part.content_size > spec::k_max_disk) return false;
        uint64_t const chunks = (part.content_size + spec::k_chunk_size - 1) / spec::k_chunk_size;
        if (part.chunks > chunks) return false;
        // All chunks are whole but the last one of the disk, which may be among those that are stored or not.
        uint64_t const whole = part.chunks * (spec::k_chunk_overhead + spec::k_chunk_size);
        uint64_t const missing = chunks * spec::k_chunk_size - part.content_size;
        return part.stored_size == whole || (part.chunks > 0 && part.stored_size == whole - missing);
    }
    }
    return false;
}

bool is_well_formed(BackupHeader const& header) {
    if (!check_vm_name(header.name) || header.vm.is_nil() || header.parts.size() > spec::k_max_parts ||
        header.provider_name.size() > k_max_provider_name || !is_printable(header.provider_name))
        return false;
    if (header.encrypted && (!KeyId::parse(header.key_id) || (header.provider_kind != ProviderKind::Native &&
                                                              header.provider_kind != ProviderKind::Kmip)))
        return false;
    uint64_t at = spec::k_header_size;
    size_t keys = 0;
    for (auto const& part : header.parts) {
        auto same_name = [&](BackupPart const& other) { return other.name == part.name; };
        if (!is_part_name(part.name) || !has_good_sizes(part) || part.offset != at ||
            std::count_if(header.parts.begin(), header.parts.end(), same_name) != 1)
            return false;
        keys += part.kind == BackupPartKind::Keys ? 1 : 0;
        // At most 64 parts of less than 2^47 bytes: no overflow.
        at = align_up(part.offset + part.stored_size, spec::k_part_alignment);
    }
    return keys == (header.encrypted ? 1U : 0U);
}

} // namespace

BackupPart const* BackupHeader::find(std::string_view part) const noexcept {
    auto it = std::find_if(parts.begin(), parts.end(), [&](BackupPart const& one) { return one.name == part; });
    return it == parts.end() ? nullptr : &*it;
}

uint64_t BackupHeader::file_size() const noexcept {
    return parts.empty() ? spec::k_header_size : parts.back().offset + parts.back().stored_size;
}

Result<BackupKey> derive_backup_key(crypto::BundleKey const& bundle, Bytes salt) {
    return crypto::derive_key<BackupKey>(bundle.expose(), salt, spec::k_key_info);
}

Error damaged_backup(std::filesystem::path const& path, std::string_view what) {
    return make_error(ErrorCode::Integrity,
                      "{}: {}: the backup was changed or damaged, and nothing was written. Use another copy of it",
                      path.native(), what);
}

Result<ByteVector> encode_backup_header(BackupHeader const& header, BackupKey const* key) {
    if (!is_well_formed(header))
        return make_error(ErrorCode::InvalidArgument, "what the backup's header is to say is not possible");
    auto const fields = encode_fields(header);
    if (fields.size() > spec::k_max_fields)
        return make_error(ErrorCode::InvalidArgument, "the backup has too many parts for its header");
    ByteVector bytes(spec::k_header_size);
    std::copy(spec::k_magic.begin(), spec::k_magic.end(), bytes.begin());
    store_le<uint32_t>(bytes, spec::k_version_at, spec::k_version);
    store_le<uint32_t>(bytes, spec::k_fields_size_at, static_cast<uint32_t>(fields.size()));
    store_le<uint8_t>(bytes, spec::k_mac_kind_at, static_cast<uint8_t>(key ? MacKind::HmacSha256 : MacKind::Sha256));
    auto digest = TRY(crypto::sha256({Bytes(bytes).first(spec::k_digest_at), fields}));
    std::copy(digest.begin(), digest.end(), bytes.begin() + spec::k_digest_at);
    std::copy(fields.begin(), fields.end(), bytes.begin() + spec::k_fields_at);
    auto mac = TRY(header_mac(bytes, key));
    std::copy(mac.begin(), mac.end(), bytes.begin() + spec::k_mac_at);
    return bytes;
}

Result<BackupHeader> parse_backup_header(Bytes bytes, uint64_t file_size, std::filesystem::path const& path) {
    if (bytes.size() < spec::k_header_size || file_size < spec::k_header_size)
        return damaged_backup(path, "the file is shorter than a backup's header");
    bytes = bytes.first(spec::k_header_size);
    if (!std::equal(spec::k_magic.begin(), spec::k_magic.end(), bytes.begin()))
        return damaged_backup(path, "the file does not begin as a backup does");
    if (auto version = load_le<uint32_t>(bytes, spec::k_version_at); version != spec::k_version)
        return make_error(ErrorCode::Integrity,
                          "{}: the file says that it has format version {}, and this coffer knows version {}: it was "
                          "changed, or a newer coffer wrote it. Nothing was written",
                          path.native(), version, spec::k_version);
    size_t const fields_size = load_le<uint32_t>(bytes, spec::k_fields_size_at);
    if (fields_size > spec::k_max_fields) return damaged_backup(path, "the header is malformed");
    Bytes const fields = bytes.subspan(spec::k_fields_at, fields_size);
    auto digest = TRY(crypto::sha256({bytes.first(spec::k_digest_at), fields}));
    if (!crypto::equal_in_constant_time(digest, bytes.subspan(spec::k_digest_at, digest.size())))
        return damaged_backup(path, "the header does not match its checksum");
    BackupHeader header;
    auto const mac_kind = load_le<uint8_t>(bytes, spec::k_mac_kind_at);
    if (!decode_fields(fields, header) || !is_well_formed(header) ||
        mac_kind != static_cast<uint8_t>(header.encrypted ? MacKind::HmacSha256 : MacKind::Sha256) ||
        !all_zero(bytes.subspan(spec::k_reserved_at, spec::k_digest_at - spec::k_reserved_at)) ||
        !all_zero(bytes.subspan(spec::k_fields_at + fields_size, spec::k_mac_at - spec::k_fields_at - fields_size)))
        return damaged_backup(path, "the header is malformed");
    if (file_size != header.file_size())
        return damaged_backup(path,
                              fmt::format("the file has {} bytes where {} are due", file_size, header.file_size()));
    return header;
}

Result<void> authenticate_backup_header(Bytes bytes, BackupKey const* key, std::filesystem::path const& path) {
    auto mac = TRY(header_mac(bytes, key));
    if (!crypto::equal_in_constant_time(mac, bytes.subspan(spec::k_mac_at, mac.size())))
        return damaged_backup(path, "the header fails authentication");
    return {};
}

} // namespace coffer::vmm
