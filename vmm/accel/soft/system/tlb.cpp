// Flushes of the TLB. They match what hardware may keep, or drop more (SDM vol. 3, 4.10.4).
#include "vmm/accel/soft/system/mmu.hpp"

namespace coffer::vmm::soft {

namespace {

void drop(TlbEntry& entry, size_t index) noexcept {
    entry.read_tag = entry.write_tag = invalid_tag(index);
}

bool holds(TlbEntry const& entry, size_t index) noexcept {
    return entry.read_tag != invalid_tag(index);
}

// Drops the pieces of large pages that lie in the same region of 2^shift bytes as `linear`.
void drop_region(Cpu& cpu, uint64_t linear, unsigned shift, uint64_t kind) noexcept {
    for (TlbSet& set : cpu.tlb) {
        for (size_t index = 0; index < k_tlb_entries; ++index) {
            TlbEntry& entry = set.entries[index];
            if (holds(entry, index) && (entry.flags & kind) && (entry.read_tag >> shift) == (linear >> shift)) {
                drop(entry, index);
            }
        }
    }
}

} // namespace

void flush_tlb_all(Cpu& cpu) noexcept {
    for (TlbSet& set : cpu.tlb) {
        for (size_t index = 0; index < k_tlb_entries; ++index) {
            drop(set.entries[index], index);
            set.entries[index].flags = 0;
        }
    }
    TlbBook& book = cpu.tlb_book;
    book.non_global_count = {};
    book.user_in_supervisor_count = 0;
    book.large_regions = {};
    book.huge_pages = false;
    translation_changed(cpu, true);
}

void flush_tlb_non_global(Cpu& cpu) noexcept {
    TlbBook& book = cpu.tlb_book;
    for (size_t set = 0; set < cpu.tlb.size(); ++set) {
        for (uint32_t i = 0; i < book.non_global_count[set]; ++i) {
            size_t index = book.non_global[set][i];
            TlbEntry& entry = cpu.tlb[set].entries[index];
            entry.flags &= ~k_tlb_listed;
            if (!(entry.flags & k_tlb_global)) drop(entry, index);
        }
        book.non_global_count[set] = 0;
    }
    translation_changed(cpu, false);
}

void flush_tlb_page(Cpu& cpu, uint64_t linear) noexcept {
    size_t const index = tlb_index(linear);
    for (TlbSet& set : cpu.tlb) {
        TlbEntry& entry = set.entries[index];
        if (entry.read_tag == (linear & k_page_mask)) drop(entry, index);
    }
    TlbBook const& book = cpu.tlb_book;
    size_t const hash = large_region_hash(linear);
    if (book.large_regions[hash / 64] & bit(static_cast<unsigned>(hash % 64)))
        drop_region(cpu, linear, 21, k_tlb_large);
    if (book.huge_pages) drop_region(cpu, linear, 30, k_tlb_huge);
    translation_changed_at(cpu, linear);
}

void flush_tlb_writes_to(Cpu& cpu, uint64_t gpa_page) noexcept {
    bool writable = false;
    // SAFETY: compared with the addresses in the TLB, never followed.
    auto const host = reinterpret_cast<uint64_t>(cpu.memory->host_page(gpa_page, writable));
    if (host == 0) return;
    for (TlbSet& set : cpu.tlb) {
        for (size_t index = 0; index < k_tlb_entries; ++index) {
            TlbEntry& entry = set.entries[index];
            if (entry.host == host) entry.write_tag = invalid_tag(index);
        }
    }
}

void drop_write_tags(Cpu& cpu) noexcept {
    for (TlbSet& set : cpu.tlb)
        for (size_t index = 0; index < k_tlb_entries; ++index) set.entries[index].write_tag = invalid_tag(index);
}

void drop_user_pages_from_supervisor_set(Cpu& cpu) noexcept {
    TlbBook& book = cpu.tlb_book;
    auto drop_user = [&](size_t index) {
        TlbEntry& entry = cpu.tlb[0].entries[index];
        if (entry.flags & k_tlb_user) drop(entry, index);
    };
    if (book.user_in_supervisor_count <= book.user_in_supervisor.size()) {
        for (uint32_t i = 0; i < book.user_in_supervisor_count; ++i) drop_user(book.user_in_supervisor[i]);
    } else {
        for (size_t index = 0; index < k_tlb_entries; ++index) drop_user(index);
    }
    book.user_in_supervisor_count = 0;
}

} // namespace coffer::vmm::soft
