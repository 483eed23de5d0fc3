#include "vmm/migrate/memory_batch.hpp"

namespace coffer::vmm {

namespace {

namespace spec = batch_spec;

Error malformed(std::string_view what) {
    return make_error(ErrorCode::Corrupt, "a batch of the VM's memory is malformed: {}", what);
}

} // namespace

void encode_batch_head(ByteVector& out, uint8_t kind, uint8_t flags, std::span<PageRun const> runs) {
    COFFER_ASSERT(!runs.empty() && runs.size() <= spec::k_max_runs);
    out.assign(spec::k_header + runs.size() * spec::k_run, std::byte{0});
    store_le<uint8_t>(out, spec::k_kind_at, kind);
    store_le<uint8_t>(out, spec::k_flags_at, flags);
    store_le<uint16_t>(out, spec::k_runs_at, static_cast<uint16_t>(runs.size()));
    size_t at = spec::k_header;
    for (auto const& run : runs) {
        store_le<uint64_t>(out, at + spec::k_run_first_at, run.first);
        store_le<uint32_t>(out, at + spec::k_run_count_at, run.count);
        at += spec::k_run;
    }
}

Result<DecodedBatch> decode_batch(Bytes bytes, uint64_t ram_pages) {
    if (bytes.size() < spec::k_header || bytes.size() > k_max_memory_batch) return malformed("its size");
    DecodedBatch batch;
    batch.kind = load_le<uint8_t>(bytes, spec::k_kind_at);
    uint8_t const flags = load_le<uint8_t>(bytes, spec::k_flags_at);
    size_t const runs = load_le<uint16_t>(bytes, spec::k_runs_at);
    if (batch.kind != spec::k_content && batch.kind != spec::k_zeros) return malformed("its kind");
    if (load_le<uint32_t>(bytes, spec::k_reserved_at) != 0) return malformed("a reserved field");
    if (flags & ~(batch.kind == spec::k_content ? spec::k_flag_zstd : 0)) return malformed("its flags");
    batch.compressed = (flags & spec::k_flag_zstd) != 0;
    if (runs == 0 || runs > spec::k_max_runs || runs * spec::k_run > bytes.size() - spec::k_header)
        return malformed("its number of runs");

    batch.runs.reserve(runs);
    uint64_t free = 0; // the lowest page that the next run may begin at
    for (size_t at = spec::k_header; batch.runs.size() < runs; at += spec::k_run) {
        PageRun run{load_le<uint64_t>(bytes, at + spec::k_run_first_at),
                    load_le<uint32_t>(bytes, at + spec::k_run_count_at)};
        if (run.count == 0 || run.first < free || run.first >= ram_pages || run.count > ram_pages - run.first)
            return malformed("a run of pages");
        free = run.first + run.count;
        batch.pages += run.count;
        batch.runs.push_back(run);
    }

    batch.payload = bytes.subspan(spec::k_header + runs * spec::k_run);
    if (batch.kind == spec::k_zeros) {
        if (!batch.payload.empty()) return malformed("zeros have no content");
        return batch;
    }
    if (batch.pages > spec::k_max_pages) return malformed("its number of pages");
    if (!batch.compressed && batch.payload.size() != batch.pages * 4096) return malformed("the size of its content");
    return batch;
}

} // namespace coffer::vmm
