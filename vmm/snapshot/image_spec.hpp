// The bytes of a machine image behind the home's header: docs/formats/snapshot.md is the specification, this header its
// constants. Little-endian.
#pragma once

#include <cstddef>
#include <cstdint>

#include "crypto/gmac.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm::image_spec {

constexpr uint32_t k_version = 1;

// The layout's part of the home's image header.
constexpr home_spec::Magic k_magic = home_spec::magic("MACHINE ");
constexpr size_t k_version_at = 8;
constexpr size_t k_cluster_size_at = 12;
constexpr size_t k_state_size_at = 16;
constexpr size_t k_memory_size_at = 24;
constexpr size_t k_table_at = 32; // offset of the table in the file; it ends the file
constexpr size_t k_cluster_count_at = 40;
constexpr size_t k_own_size = 48;

constexpr size_t k_page = 4096;
constexpr size_t k_cluster = 65536;
constexpr size_t k_pages_in_cluster = k_cluster / k_page;
constexpr uint64_t k_max_state = uint64_t{48} << 20;
constexpr uint64_t k_max_memory = uint64_t{1} << 43;

// Table entry.
constexpr size_t k_entry_offset_at = 0; // in the file; 0 where nothing is stored
constexpr size_t k_entry_size_at = 8;   // stored bytes
constexpr size_t k_entry_pages_at = 12; // a bit a page: it is not all zeros
constexpr size_t k_entry_flags_at = 14;
constexpr size_t k_entry_tag_at = 16;
constexpr size_t k_entry = k_entry_tag_at + crypto::Gmac::k_tag_size;
constexpr uint16_t k_flag_zstd = 1;
constexpr unsigned k_writing_shift = 8; // flags: which writing of the cluster it is, from 0
constexpr unsigned k_max_writing = 255;
constexpr unsigned k_unit_writing_shift = 40; // and in the number of the unit, above the cluster's

} // namespace coffer::vmm::image_spec
