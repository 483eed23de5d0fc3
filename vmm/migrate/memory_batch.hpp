// What the memory engine of migration sends: batches, each decodable by itself but for the order in which they come.
// docs/migration.md is the specification. Little-endian.
//
//   offset  size
//   0       1     kind: 1 pages with content, 2 pages of zeros
//   1       1     flags: bit 0: the content is one zstd frame (kind 1 alone); others zero
//   2       2     number of runs, 1 to 4096
//   4       4     zero
//   8       12n   runs: first page (8), number of pages (4, at least 1); ascending and disjoint
//   8+12n         kind 1: the pages' content, 4096 bytes each, at most 256 pages; kind 2: nothing
//
// A page's content is as of some moment since the last batch that had it; the last one counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.hpp"
#include "base/result.hpp"

namespace coffer::vmm {

namespace batch_spec {
constexpr uint8_t k_content = 1;
constexpr uint8_t k_zeros = 2;
constexpr uint8_t k_flag_zstd = 1;
constexpr size_t k_kind_at = 0;
constexpr size_t k_flags_at = 1;
constexpr size_t k_runs_at = 2;
constexpr size_t k_reserved_at = 4;
constexpr size_t k_header = 8;
constexpr size_t k_run_first_at = 0;
constexpr size_t k_run_count_at = 8;
constexpr size_t k_run = 12;
constexpr size_t k_max_runs = 4096;
constexpr size_t k_max_pages = 256; // with content
} // namespace batch_spec

// No batch is longer: what a frame around it must hold.
constexpr size_t k_max_memory_batch =
    batch_spec::k_header + batch_spec::k_max_runs * batch_spec::k_run + batch_spec::k_max_pages * 4096;

struct PageRun {
    uint64_t first = 0;
    uint32_t count = 0;
};

// Into `out`, which is replaced. `content` is empty for zeros.
void encode_batch_head(ByteVector& out, uint8_t kind, uint8_t flags, std::span<PageRun const> runs);

struct DecodedBatch {
    uint8_t kind = 0;
    bool compressed = false;
    std::vector<PageRun> runs;
    uint64_t pages = 0; // in all runs
    Bytes payload;      // of the input
};
// Corrupt where the bytes break a rule, or name a page that is not below `ram_pages`. What a compressed payload holds
// is not looked at.
Result<DecodedBatch> decode_batch(Bytes bytes, uint64_t ram_pages);

} // namespace coffer::vmm
