// The bytes of a home's files: docs/formats/home.md is the specification, this header its constants. Little-endian.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "crypto/mac.hpp"
#include "crypto/xts.hpp"

namespace coffer::vmm::home_spec {

using Magic = std::array<std::byte, 8>;
constexpr Magic magic(char const (&text)[9]) {
    Magic bytes{};
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(text[i]);
    return bytes;
}

constexpr uint32_t k_version = 1;

// Names of the files in a home's folder. Names of data files are authenticated with them.
constexpr std::string_view k_keys_file = "keys";
constexpr std::string_view k_lock_file = "lock";
constexpr size_t k_max_file_name = 63;
// How names of files beside the fixed ones begin.
constexpr std::string_view k_further_prefix = "snapshot-";

// `keys`: prefix, header (tagged fields), sealed part.
namespace keys {
constexpr Magic k_magic = magic("COFRKEYS");
constexpr size_t k_version_at = 8;
constexpr size_t k_header_size_at = 12;
constexpr size_t k_sealed_size_at = 16;
constexpr size_t k_reserved_at = 20;
constexpr size_t k_digest_at = 32; // SHA-256 over [0, 32) and the header: finds damage, proves nothing
constexpr size_t k_prefix_size = 64;
static_assert(k_digest_at + crypto::k_digest_size == k_prefix_size);
constexpr size_t k_max_header = 8192;
constexpr size_t k_max_sealed = 32768;
constexpr size_t k_salt_size = 32;
constexpr uint32_t k_max_epochs = 16;
constexpr size_t k_max_manifest = 24576;
constexpr size_t k_max_manifest_files = 160;
constexpr size_t k_max_pending_events = 4;                     // of the history, in the manifest
constexpr std::string_view k_seal_info = "coffer home 1 keys"; // HKDF info of the sealing key
} // namespace keys

// A data file: header, units, tags.
namespace data {
constexpr Magic k_magic = magic("COFRDATA");
constexpr size_t k_version_at = 8;
constexpr size_t k_header_size_at = 12;
constexpr size_t k_layout_at = 16;
constexpr size_t k_cipher_at = 17;
constexpr size_t k_mac_at = 18;
constexpr size_t k_unit_size_at = 20;
constexpr size_t k_content_size_at = 24;
constexpr size_t k_generation_at = 32;
constexpr size_t k_epoch_at = 40;
constexpr size_t k_file_uuid_at = 48;
constexpr size_t k_vm_uuid_at = 64;
constexpr size_t k_unit_count_at = 80;
constexpr size_t k_written_at = 88;
constexpr size_t k_root_at = 96;
constexpr size_t k_name_size_at = 128;
constexpr size_t k_name_at = 129;
constexpr size_t k_reserved_at = 192;
constexpr size_t k_mac_value_at = 4064;
constexpr size_t k_header_size = 4096;
static_assert(k_root_at + crypto::k_digest_size == k_name_size_at);
static_assert(k_name_at + k_max_file_name == k_reserved_at);
static_assert(k_mac_value_at + crypto::k_digest_size == k_header_size);

constexpr size_t k_unit_size = crypto::k_xts_unit_size;
constexpr size_t k_tag_size = crypto::k_digest_size;
// Files of this layout are read and written whole.
constexpr uint64_t k_max_content = uint64_t{64} << 20;

enum class Layout : uint8_t {
    WholeRewrite = 1,
    Image = 2, // written once; what lies behind the header is of the layout that the header's own part tells
};
// Of an image: the part of the header that belongs to its layout, and the bytes behind the header.
constexpr size_t k_image_own_at = 192;
constexpr size_t k_image_own_size = 2048;
constexpr uint64_t k_max_image = uint64_t{1} << 44;
enum class Cipher : uint8_t { None = 0, XtsAes256 = 1 };
enum class Mac : uint8_t { Sha256 = 0, HmacSha256 = 1 };

// First byte of what a MAC is computed over, so that no tag can stand in for one of another kind.
enum class MacDomain : uint8_t { Header = 1, Unit = 2, Root = 3, ImageHeader = 4 };

constexpr std::string_view k_cipher_info = "coffer home 1 file cipher"; // HKDF infos
constexpr std::string_view k_mac_info = "coffer home 1 file mac";
constexpr std::string_view k_image_units_info = "coffer home 1 image units";
} // namespace data

// The host's record of a home, outside of it.
namespace host {
constexpr Magic k_magic = magic("COFRHOST");
constexpr size_t k_version_at = 8;
constexpr size_t k_flags_at = 12;
constexpr uint32_t k_flag_encrypted = 1;
constexpr uint32_t k_flag_handed_over = 2;
constexpr uint32_t k_flag_arriving = 4;
constexpr size_t k_vm_uuid_at = 16;
constexpr size_t k_sequence_at = 32;
constexpr size_t k_migration_at = 40;
constexpr size_t k_reserved_at = 56;
constexpr size_t k_digest_at = 64; // SHA-256 over [0, 64)
constexpr size_t k_size = 96;
static_assert(k_digest_at + crypto::k_digest_size == k_size);
} // namespace host

} // namespace coffer::vmm::home_spec
