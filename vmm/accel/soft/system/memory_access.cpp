// Accesses to guest-linear memory from C++: with all checks, across pages, to MMIO, ROM and pages with translated code.
#include <algorithm>
#include <cstring>

#include "vmm/accel/soft/system/mmu.hpp"

namespace coffer::vmm::soft {

namespace {

// A naturally aligned access of 1, 2, 4 or 8 bytes is one access for other vCPUs and device threads as well.
void copy(void* to, void const* from, size_t size) noexcept {
    switch (size) {
    case 1: std::memcpy(to, from, 1); break;
    case 2: std::memcpy(to, from, 2); break;
    case 4: std::memcpy(to, from, 4); break;
    case 8: std::memcpy(to, from, 8); break;
    default: std::memcpy(to, from, size); break;
    }
}

// Naturally aligned pieces of at most 8 bytes, as a bus would split them.
size_t bus_piece(uint64_t gpa, size_t size) noexcept {
    size_t piece = 8;
    while (piece > size || (gpa & (piece - 1))) piece >>= 1;
    return piece;
}

void mmio_read(Cpu& cpu, uint64_t gpa, std::byte* to, size_t size) noexcept {
    for (size_t done = 0; done < size;) {
        size_t piece = bus_piece(gpa + done, size - done);
        ++cpu.mmio_accesses;
        cpu.io->mmio_read(GuestPhysAddr(gpa + done), MutBytes(to + done, piece));
        done += piece;
    }
}

void mmio_write(Cpu& cpu, uint64_t gpa, std::byte const* from, size_t size) noexcept {
    for (size_t done = 0; done < size;) {
        size_t piece = bus_piece(gpa + done, size - done);
        ++cpu.mmio_accesses;
        cpu.io->mmio_write(GuestPhysAddr(gpa + done), Bytes(from + done, piece));
        done += piece;
    }
}

size_t left_in_page(uint64_t linear) noexcept {
    return k_page_size - (linear & ~k_page_mask);
}

// The linear address `offset` bytes further, as the mode wraps it.
uint64_t advance(Cpu const& cpu, uint64_t linear, uint64_t offset) noexcept {
    uint64_t sum = linear + offset;
    return cpu.mode.long_mode ? sum : sum & 0xFFFFFFFF;
}

struct Split {
    std::array<PageAccess, 2> pages;
    size_t first = 0; // bytes in pages[0]
};

// Finds one or two pages before anything is transferred.
bool find_pages(Cpu& cpu, uint64_t linear, size_t size, Access access, Privilege privilege, bool stack,
                Split& split) noexcept {
    if (!cpu.mode.long_mode) linear &= 0xFFFFFFFF;
    split.first = std::min(size, left_in_page(linear));
    if (!access_page(cpu, linear, access, privilege, split.pages[0], stack)) return false;
    if (split.first == size) return true;
    return access_page(cpu, advance(cpu, linear, split.first), access, privilege, split.pages[1], stack);
}

} // namespace

bool access_page(Cpu& cpu, uint64_t linear, Access access, Privilege privilege, PageAccess& page, bool stack) noexcept {
    uint64_t const offset = linear & ~k_page_mask;
    size_t const set = privilege == Privilege::User ? 1 : 0;
    TlbEntry const& entry = cpu.tlb[set].entries[tlb_index(linear)];
    bool const ours = privilege != Privilege::Implicit && access != Access::Execute;
    if (ours && access == Access::Write && entry.write_tag == (linear & k_page_mask)) {
        // SAFETY: fill_tlb() stored the address of a host page.
        page = {.gpa = 0, .host = reinterpret_cast<std::byte*>(entry.host) + offset, .direct = true, .noted = true};
        return true;
    }
    if (ours && access == Access::Read && entry.read_tag == (linear & k_page_mask)) {
        // SAFETY: as above.
        page = {.gpa = 0, .host = reinterpret_cast<std::byte*>(entry.host) + offset, .direct = true};
        return true;
    }

    if (cpu.mode.long_mode && !is_canonical(linear)) return raise(cpu, stack ? Vector::SS : Vector::GP, 0);
    PageWalk walk;
    uint32_t error = 0;
    if (!walk_page(cpu, linear, access, privilege, walk, error)) {
        cpu.fault = Fault{.vector = Vector::PF, .has_error = true, .error = error, .cr2 = linear};
        return false;
    }
    bool writable = false;
    std::byte* host = cpu.memory->host_page(walk.gpa_page, writable);
    page = {.gpa = walk.gpa_page + offset,
            .host = host ? host + offset : nullptr,
            .direct = host && writable && !cpu.memory->has_code(walk.gpa_page),
            .read_only = host && !writable};
    // The next access of this kind is likely to hit the same page.
    if (ours && host && privilege == current_privilege(cpu)) fill_tlb(cpu, linear, access == Access::Write);
    return true;
}

void page_read(Cpu& cpu, PageAccess const& page, void* to, size_t size) noexcept {
    if (page.host)
        copy(to, page.host, size);
    else
        mmio_read(cpu, page.gpa, static_cast<std::byte*>(to), size);
}

void page_write(Cpu& cpu, PageAccess const& page, void const* from, size_t size) noexcept {
    if (!page.host || page.read_only) {
        mmio_write(cpu, page.gpa, static_cast<std::byte const*>(from), size);
        return;
    }
    copy(page.host, from, size);
    page_stored(cpu, page, size);
}

void page_stored(Cpu& cpu, PageAccess const& page, size_t size) noexcept {
    if (!page.noted) cpu.memory->note_store(page.gpa & k_page_mask);
    if (!page.direct) cpu.memory->code_written(page.gpa, size);
}

bool linear_read(Cpu& cpu, uint64_t linear, void* to, size_t size, Privilege privilege, bool stack) noexcept {
    if (size == 0) return true;
    Split split;
    if (!find_pages(cpu, linear, size, Access::Read, privilege, stack, split)) return false;
    page_read(cpu, split.pages[0], to, split.first);
    if (split.first < size)
        page_read(cpu, split.pages[1], static_cast<std::byte*>(to) + split.first, size - split.first);
    return true;
}

bool linear_write(Cpu& cpu, uint64_t linear, void const* from, size_t size, Privilege privilege, bool stack) noexcept {
    if (size == 0) return true;
    Split split;
    if (!find_pages(cpu, linear, size, Access::Write, privilege, stack, split)) return false;
    page_write(cpu, split.pages[0], from, split.first);
    if (split.first < size) {
        page_write(cpu, split.pages[1], static_cast<std::byte const*>(from) + split.first, size - split.first);
    }
    return true;
}

bool linear_check_write(Cpu& cpu, uint64_t linear, size_t size, Privilege privilege, bool stack) noexcept {
    if (size == 0) return true;
    Split split;
    return find_pages(cpu, linear, size, Access::Write, privilege, stack, split);
}

bool memory_read(Cpu& cpu, uint64_t linear, void* to, size_t size) noexcept {
    return linear_read(cpu, linear, to, size, current_privilege(cpu));
}

bool memory_write(Cpu& cpu, uint64_t linear, void const* from, size_t size) noexcept {
    return linear_write(cpu, linear, from, size, current_privilege(cpu));
}

bool memory_check_write(Cpu& cpu, uint64_t linear, size_t size) noexcept {
    return linear_check_write(cpu, linear, size, current_privilege(cpu));
}

bool fetch_translate(Cpu& cpu, uint64_t linear, FetchPage& page) noexcept {
    if (!cpu.mode.long_mode)
        linear &= 0xFFFFFFFF;
    else if (!is_canonical(linear))
        return raise(cpu, Vector::GP, 0);
    PageWalk walk;
    uint32_t error = 0;
    if (!walk_page(cpu, linear, Access::Execute, current_privilege(cpu), walk, error)) {
        cpu.fault = Fault{.vector = Vector::PF, .has_error = true, .error = error, .cr2 = linear};
        return false;
    }
    page.gpa = walk.gpa_page + (linear & ~k_page_mask);
    page.global = walk.global;
    page.large = walk.size != PageSize::Small;
    page.huge = walk.size == PageSize::Huge;
    return true;
}

bool pae_pointers_valid(Cpu& cpu, uint64_t cr3) noexcept {
    constexpr uint64_t reserved = 0x1E6 | ~k_physical_mask;
    bool writable = false;
    std::byte* page = cpu.memory->host_page(cr3 & 0xFFFFF000, writable);
    if (!page) return true; // all ones: found by the walk
    for (unsigned i = 0; i < 4; ++i) {
        uint64_t pointer = 0;
        std::memcpy(&pointer, page + (cr3 & 0xFE0) + i * 8, sizeof pointer);
        if ((pointer & 1) && (pointer & reserved)) return false;
    }
    return true;
}

} // namespace coffer::vmm::soft
