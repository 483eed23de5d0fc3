// The page walk and the TLB fill.
//
// Compiled for general registers only: emitted code calls fill_tlb() with the guest's FP state in the host's registers.
// Nothing outside of this file is called but PhysicalMemory::host_page, has_code, note_store and store_noted, which
// obey the same rule.
//
// A page table that is not in RAM reads as all ones (reserved bits set), one in ROM keeps its A and D bits. Tables are
// not looked up in device memory. A and D updates of a table that shares its page with translated code do not
// invalidate that code: no instruction byte is a page-table entry in a guest that works.
#include "vmm/accel/soft/system/mmu.hpp"

// g++ takes -mgeneral-regs-only for the whole file; clang cannot read the library's headers under it.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("general-regs-only"))), apply_to = function)
#endif

namespace coffer::vmm::soft {

namespace {

constexpr uint64_t k_p = bit(0), k_rw = bit(1), k_us = bit(2), k_a = bit(5), k_d = bit(6), k_ps = bit(7), k_g = bit(8);
constexpr uint64_t k_nx = bit(63);
constexpr uint64_t k_address = 0x000F'FFFF'FFFF'F000;
constexpr uint64_t k_reserved_address = k_address & ~k_physical_mask;

constexpr uint32_t k_error_present = 1, k_error_write = 2, k_error_user = 4, k_error_reserved = 8, k_error_fetch = 16;

enum class Outcome : uint8_t { Done, Again, Fault };

// One level's entry as it was read, kept until the access turns out to be allowed and its A (and D) bit is due.
template <class Entry>
struct Step64 {
    Entry* at = nullptr; // null: in no RAM, cannot be updated
    Entry value = 0;
    uint64_t gpa_page = 0;
};

struct Request {
    Cpu& cpu;
    uint64_t linear;
    Access access;
    Privilege privilege;
};

template <class Entry>
Step64<Entry> read_entry(Cpu& cpu, uint64_t gpa) noexcept {
    bool writable = false;
    std::byte* page = cpu.memory->host_page(gpa & k_page_mask, writable);
    if (!page) return {nullptr, static_cast<Entry>(~Entry{0}), 0};
    // SAFETY: entries are naturally aligned within a host page, which is page-aligned and stays mapped.
    auto* at = reinterpret_cast<Entry*>(page + (gpa & ~k_page_mask));
    return {writable ? at : nullptr, __atomic_load_n(at, __ATOMIC_RELAXED), gpa & k_page_mask};
}

// False where another agent changed the entry since it was read: the walk starts again.
template <class Entry>
bool set_bits(Cpu& cpu, Step64<Entry>& step, Entry bits) noexcept {
    if ((step.value & bits) == bits || !step.at) return true;
    Entry expected = step.value;
    Entry wanted = static_cast<Entry>(step.value | bits);
    if (!__atomic_compare_exchange_n(step.at, &expected, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return false;
    step.value = wanted;
    cpu.memory->note_store(step.gpa_page);
    return true;
}

uint32_t access_error(Request const& request) noexcept {
    uint32_t error = 0;
    if (request.access == Access::Write) error |= k_error_write;
    if (request.privilege == Privilege::User) error |= k_error_user;
    bool nx = (request.cpu.cr4 & k_cr4_pae) && (request.cpu.efer & k_efer_nxe);
    if (request.access == Access::Execute && (nx || (request.cpu.cr4 & k_cr4_smep))) error |= k_error_fetch;
    return error;
}

// SDM vol. 3, 4.6.1. The rights are those of all levels combined.
bool allowed(Request const& request, bool writable, bool user, bool no_execute) noexcept {
    Cpu const& cpu = request.cpu;
    if (request.privilege == Privilege::User) {
        if (!user) return false;
        if (request.access == Access::Write) return writable;
        return request.access == Access::Read || !no_execute;
    }
    if (request.access == Access::Execute) return !no_execute && !(user && (cpu.cr4 & k_cr4_smep));
    if (user && (cpu.cr4 & k_cr4_smap)) {
        if (request.privilege == Privilege::Implicit || !(cpu.rflags & k_ac)) return false;
    }
    return request.access == Access::Read || writable || !(cpu.cr0 & k_cr0_wp);
}

void fill_walk(Request const& request, PageWalk& walk, bool writable, bool user, bool global, bool dirty) noexcept {
    walk.user = user;
    walk.writable = writable || (request.privilege != Privilege::User && !(request.cpu.cr0 & k_cr0_wp));
    walk.global = global && (request.cpu.cr4 & k_cr4_pge);
    walk.dirty = dirty;
}

// 32-bit paging (SDM vol. 3, 4.3), with 4 MiB pages and PSE-36.
Outcome walk32(Request const& request, PageWalk& walk, uint32_t& error) noexcept {
    Cpu& cpu = request.cpu;
    uint64_t linear = request.linear;
    auto directory = read_entry<uint32_t>(cpu, (cpu.cr3 & 0xFFFFF000) + ((linear >> 22) & 0x3FF) * 4);
    if (!(directory.value & k_p)) return error = access_error(request), Outcome::Fault;
    bool writable = directory.value & k_rw;
    bool user = directory.value & k_us;
    constexpr auto accessed = static_cast<uint32_t>(k_a), dirty = static_cast<uint32_t>(k_d);

    if ((directory.value & k_ps) && (cpu.cr4 & k_cr4_pse)) {
        if (directory.value & bit(21)) {
            return error = access_error(request) | k_error_present | k_error_reserved, Outcome::Fault;
        }
        if (!allowed(request, writable, user, false))
            return error = access_error(request) | k_error_present, Outcome::Fault;
        if (!set_bits(cpu, directory, request.access == Access::Write ? accessed | dirty : accessed))
            return Outcome::Again;
        walk.gpa_page = (directory.value & 0xFFC00000) | (static_cast<uint64_t>(directory.value >> 13) & 0xFF) << 32 |
                        (linear & 0x3FF000);
        walk.size = PageSize::Huge;
        fill_walk(request, walk, writable, user, directory.value & k_g, directory.value & k_d);
        return Outcome::Done;
    }

    auto table = read_entry<uint32_t>(cpu, (directory.value & 0xFFFFF000) + ((linear >> 12) & 0x3FF) * 4);
    if (!(table.value & k_p)) return error = access_error(request), Outcome::Fault;
    writable = writable && (table.value & k_rw);
    user = user && (table.value & k_us);
    if (!allowed(request, writable, user, false))
        return error = access_error(request) | k_error_present, Outcome::Fault;
    if (!set_bits(cpu, directory, accessed)) return Outcome::Again;
    if (!set_bits(cpu, table, request.access == Access::Write ? accessed | dirty : accessed)) return Outcome::Again;
    walk.gpa_page = table.value & 0xFFFFF000;
    walk.size = PageSize::Small;
    fill_walk(request, walk, writable, user, table.value & k_g, table.value & k_d);
    return Outcome::Done;
}

// Bits that must be zero in an entry of 64 bits. Bit 63 is NX where EFER.NXE allows it; PAE paging reserves 62:52 too
// (SDM vol. 3, tables 4-8 to 4-11 and 4-15 to 4-20).
uint64_t reserved_bits(Cpu const& cpu, bool long_mode, unsigned level, uint64_t entry) noexcept {
    uint64_t reserved = k_reserved_address;
    if (!(cpu.efer & k_efer_nxe)) reserved |= k_nx;
    if (!long_mode) {
        reserved |= 0x7FF0'0000'0000'0000;
        if (level == 3) return reserved | k_nx | 0x1E6;
    }
    if (level == 4) return reserved | k_ps;
    if (entry & k_ps) {
        if (level == 3) reserved |= 0x3FFF'E000;
        if (level == 2) reserved |= 0x1F'E000;
    }
    return reserved;
}

// PAE paging (4.4) with three levels, of which the first carries no rights, and 4-level paging (4.5). PDPTEs are read
// with each walk, not kept since the load of CR3.
Outcome walk64(Request const& request, PageWalk& walk, uint32_t& error) noexcept {
    Cpu& cpu = request.cpu;
    bool const long_mode = cpu.efer & k_efer_lma;
    unsigned level = long_mode ? 4 : 3;
    uint64_t table = cpu.cr3 & (long_mode ? k_address & k_physical_mask : 0xFFFFFFE0);
    std::array<Step64<uint64_t>, 4> upper;
    unsigned uppers = 0;
    bool writable = true, user = true, no_execute = false;

    for (;; --level) {
        unsigned const shift = 12 + 9 * (level - 1);
        auto entry = read_entry<uint64_t>(cpu, table + ((request.linear >> shift) & 0x1FF) * 8);
        if (!(entry.value & k_p)) return error = access_error(request), Outcome::Fault;
        if (entry.value & reserved_bits(cpu, long_mode, level, entry.value)) {
            return error = access_error(request) | k_error_present | k_error_reserved, Outcome::Fault;
        }
        bool const pointers = !long_mode && level == 3;
        if (!pointers) {
            writable = writable && (entry.value & k_rw);
            user = user && (entry.value & k_us);
            no_execute = no_execute || (entry.value & k_nx);
        }
        bool const leaf = level == 1 || (!pointers && level < 4 && (entry.value & k_ps));
        if (!leaf) {
            if (!pointers) upper[uppers++] = entry;
            table = entry.value & k_address;
            continue;
        }

        if (!allowed(request, writable, user, no_execute)) {
            return error = access_error(request) | k_error_present, Outcome::Fault;
        }
        for (unsigned i = 0; i < uppers; ++i) {
            if (!set_bits(cpu, upper[i], k_a)) return Outcome::Again;
        }
        if (!set_bits(cpu, entry, request.access == Access::Write ? k_a | k_d : k_a)) return Outcome::Again;
        uint64_t const offset = mask_bits(shift);
        walk.gpa_page = ((entry.value & k_address & ~offset) | (request.linear & offset)) & k_page_mask;
        walk.size = level == 1 ? PageSize::Small : level == 2 ? PageSize::Large : PageSize::Huge;
        fill_walk(request, walk, writable, user, entry.value & k_g, entry.value & k_d);
        return Outcome::Done;
    }
}

void remember_entry(Cpu& cpu, unsigned set, size_t index, TlbEntry& entry, PageWalk const& walk,
                    uint64_t page) noexcept {
    TlbBook& book = cpu.tlb_book;
    uint64_t flags = entry.flags & k_tlb_listed;
    if (walk.global) flags |= k_tlb_global;
    if (!walk.global && !(flags & k_tlb_listed)) {
        book.non_global[set][book.non_global_count[set]++] = static_cast<uint16_t>(index);
        flags |= k_tlb_listed;
    }
    if (walk.user) {
        flags |= k_tlb_user;
        if (set == 0 && (cpu.cr4 & k_cr4_smap)) {
            if (book.user_in_supervisor_count < book.user_in_supervisor.size()) {
                book.user_in_supervisor[book.user_in_supervisor_count] = static_cast<uint16_t>(index);
            }
            if (book.user_in_supervisor_count <= book.user_in_supervisor.size()) ++book.user_in_supervisor_count;
        }
    }
    if (walk.size == PageSize::Large) {
        flags |= k_tlb_large;
        size_t hash = large_region_hash(page);
        book.large_regions[hash / 64] |= bit(static_cast<unsigned>(hash % 64));
    }
    if (walk.size == PageSize::Huge) {
        flags |= k_tlb_huge;
        book.huge_pages = true;
    }
    entry.flags = flags;
}

} // namespace

bool walk_page(Cpu& cpu, uint64_t linear, Access access, Privilege privilege, PageWalk& walk,
               uint32_t& error) noexcept {
    Request request{cpu, linear, access, privilege};
    if (!(cpu.cr0 & k_cr0_pg)) {
        walk = {.gpa_page = linear & k_page_mask & 0xFFFFFFFF, .writable = true, .user = false, .dirty = true};
        return true;
    }
    for (;;) {
        Outcome outcome = (cpu.cr4 & k_cr4_pae) ? walk64(request, walk, error) : walk32(request, walk, error);
        if (outcome != Outcome::Again) return outcome == Outcome::Done;
    }
}

bool fill_tlb(Cpu& cpu, uint64_t linear, bool write) noexcept {
    if ((cpu.efer & k_efer_lma) ? !is_canonical(linear) : (linear >> 32) != 0) return false;
    PageWalk walk;
    uint32_t error = 0;
    unsigned const set = cpu.mode.cpl == 3 ? 1 : 0;
    Privilege privilege = set == 1 ? Privilege::User : Privilege::Supervisor;
    if (!walk_page(cpu, linear, write ? Access::Write : Access::Read, privilege, walk, error)) return false;
    bool ram = false;
    std::byte* host = cpu.memory->host_page(walk.gpa_page, ram);
    if (!host) return false;
    bool const direct = ram && !cpu.memory->has_code(walk.gpa_page);
    if (write && direct) cpu.memory->note_store(walk.gpa_page);

    uint64_t const page = linear & k_page_mask;
    size_t const index = tlb_index(linear);
    TlbEntry& entry = cpu.tlb[set].entries[index];
    remember_entry(cpu, set, index, entry, walk, page);
    entry.read_tag = page;
    bool const stores = direct && walk.writable && walk.dirty && (write || cpu.memory->store_noted(walk.gpa_page));
    entry.write_tag = stores ? page : invalid_tag(index);
    // SAFETY: the address of a host page, which emitted code adds an offset below the page's size to.
    entry.host = reinterpret_cast<uint64_t>(host);
    ++cpu.tlb_fills;
    return !write || direct;
}

} // namespace coffer::vmm::soft

#ifdef __clang__
#pragma clang attribute pop
#endif
