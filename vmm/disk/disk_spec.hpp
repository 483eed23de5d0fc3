// The bytes of an encrypted disk image: docs/formats/disk.md is the specification, this header its constants.
// Little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/bytes.hpp"
#include "vmm/home/home_spec.hpp"
#include "vmm/home/vm_config.hpp"

namespace coffer::vmm::disk_spec {

constexpr home_spec::Magic k_magic = home_spec::magic("COFRDISK");
constexpr uint32_t k_version = 1;

// Header.
constexpr size_t k_version_at = 8;
constexpr size_t k_header_size_at = 12;
constexpr size_t k_protection_at = 16;
constexpr size_t k_cipher_at = 17;
constexpr size_t k_mac_at = 18;
constexpr size_t k_unit_size_at = 20;
constexpr size_t k_content_size_at = 24;
constexpr size_t k_epoch_at = 32;
constexpr size_t k_journal_size_at = 40;
constexpr size_t k_disk_uuid_at = 48;
constexpr size_t k_vm_uuid_at = 64;
constexpr size_t k_created_at = 80;
constexpr size_t k_generation_at = 88;
constexpr size_t k_root_at = 96;
constexpr size_t k_reserved_at = 128;
constexpr size_t k_mac_value_at = 4064;
constexpr size_t k_header_size = 4096;
constexpr unsigned k_header_slots = 2;
static_assert(k_mac_value_at + crypto::k_digest_size == k_header_size);

constexpr uint64_t k_unit_size = crypto::k_xts_unit_size;
constexpr uint64_t k_sector_size = 512; // of the guest's disk
constexpr uint64_t k_part_alignment = uint64_t{1} << 20;
constexpr uint64_t k_max_content = uint64_t{1} << 46;
// The table of an authenticated disk is held in memory: 64 bytes for each MiB of content.
constexpr uint64_t k_max_authenticated_content = uint64_t{1} << 41;

// Tags of an authenticated disk: generation and truncated MAC of a unit; 128 to a block, 128 MACs of blocks to a block
// of the table.
constexpr size_t k_tag_size = 24;
constexpr size_t k_tag_entry_size = 8 + k_tag_size;
constexpr uint64_t k_tags_in_block = k_unit_size / k_tag_entry_size;
constexpr uint64_t k_macs_in_block = k_unit_size / crypto::k_digest_size;

// First byte of what a MAC is computed over, so that none can stand in for one of another kind.
enum class MacDomain : uint8_t { Header = 1, Unit = 2, TagBlock = 3, TableBlock = 4, Root = 5, Journal = 6 };

constexpr std::string_view k_cipher_info = "coffer disk 1 cipher"; // HKDF infos
constexpr std::string_view k_mac_info = "coffer disk 1 mac";

// A transaction of the journal: descriptor, filled up to a multiple of the block size, and blocks.
namespace journal {
constexpr home_spec::Magic k_magic = home_spec::magic("COFRJRNL");
constexpr size_t k_epoch_at = 8;
constexpr size_t k_number_at = 16;
constexpr size_t k_kind_at = 24;
constexpr size_t k_count_at = 28;
constexpr size_t k_generation_at = 32;
constexpr size_t k_reserved_at = 40;
constexpr size_t k_root_at = 64;
constexpr size_t k_mac_value_at = 96;
constexpr size_t k_entries_at = 128;
constexpr size_t k_entry_size = 8 + 32;
constexpr uint32_t k_max_entries = 256;

enum class Kind : uint32_t {
    Units = 1,      // entries: unit, its tag entry; a block for each whose tag entry is not zero
    Checkpoint = 2, // entries: tag block or table block, its MAC; a block for each
    Last = 3,       // the same, and the checkpoint is complete
};
constexpr uint64_t k_table_block = uint64_t{1} << 63; // in an entry's number: a table block, else a tag block

constexpr uint64_t descriptor_size(uint64_t entries) noexcept {
    return align_up(k_entries_at + entries * k_entry_size, k_unit_size);
}
constexpr uint64_t k_max_transaction = descriptor_size(k_max_entries) + k_max_entries * k_unit_size;
constexpr uint64_t k_min_size = uint64_t{64} << 10;
constexpr uint64_t k_max_size = uint64_t{256} << 20;
} // namespace journal

// Where the parts of an image are.
struct Layout {
    uint64_t content_size = 0; // bytes, of the guest's disk
    uint64_t journal_size = 0; // 0: not authenticated

    constexpr uint64_t units() const noexcept { return (content_size + k_unit_size - 1) / k_unit_size; }
    constexpr bool authenticated() const noexcept { return journal_size != 0; }
    constexpr uint64_t tag_blocks() const noexcept {
        return authenticated() ? (units() + k_tags_in_block - 1) / k_tags_in_block : 0;
    }
    constexpr uint64_t table_blocks() const noexcept { return (tag_blocks() + k_macs_in_block - 1) / k_macs_in_block; }

    constexpr uint64_t journal_at() const noexcept { return k_part_alignment; }
    constexpr uint64_t table_at() const noexcept { return journal_at() + journal_size; }
    constexpr uint64_t tags_at() const noexcept { return table_at() + table_blocks() * k_unit_size; }
    constexpr uint64_t data_at() const noexcept {
        return align_up(tags_at() + tag_blocks() * k_unit_size, k_part_alignment);
    }
    constexpr uint64_t file_size() const noexcept { return data_at() + units() * k_unit_size; }
};

} // namespace coffer::vmm::disk_spec
