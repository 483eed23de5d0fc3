// The bytes of an overlay file: docs/formats/disk.md, "Overlays". Little-endian.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bytes.hpp"
#include "vmm/home/home_spec.hpp"

namespace coffer::vmm::overlay_spec {

constexpr home_spec::Magic k_magic = home_spec::magic("COFROVLY");
constexpr uint32_t k_version = 1;

constexpr size_t k_version_at = 8;
constexpr size_t k_cluster_size_at = 12;
constexpr size_t k_content_size_at = 16;
constexpr size_t k_id_at = 24;
constexpr size_t k_reserved_at = 40;
constexpr size_t k_header_size = 4096;

constexpr uint64_t k_cluster_size = 65536;
constexpr uint64_t k_table_at = k_header_size;
constexpr uint64_t k_table_block = 4096; // a part of the table that is written as one
constexpr uint64_t k_max_content = uint64_t{1} << 46;

struct Layout {
    uint64_t content_size = 0; // bytes, a multiple of 512

    constexpr uint64_t clusters() const noexcept { return (content_size + k_cluster_size - 1) / k_cluster_size; }
    constexpr uint64_t table_size() const noexcept { return align_up((clusters() + 7) / 8, k_table_block); }
    constexpr uint64_t data_at() const noexcept { return align_up(k_table_at + table_size(), k_cluster_size); }
    constexpr uint64_t file_size() const noexcept { return data_at() + clusters() * k_cluster_size; }
};

} // namespace coffer::vmm::overlay_spec
