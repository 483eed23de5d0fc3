// Linear to physical translation, and accesses by privilege. Intel SDM vol. 3, chapter 4 (paging), 4.6 (access rights).
#pragma once

#include "vmm/accel/soft/system/architecture.hpp"

namespace coffer::vmm::soft {

// Implicit: descriptor tables and task state, supervisor accesses whatever the CPL (SDM vol. 3, 4.6.1).
enum class Privilege : uint8_t { Supervisor, User, Implicit };

inline Privilege current_privilege(Cpu const& cpu) noexcept {
    return cpu.mode.cpl == 3 ? Privilege::User : Privilege::Supervisor;
}

enum class PageSize : uint8_t { Small, Large, Huge }; // 4 KiB; 2 MiB; 4 MiB or 1 GiB

struct PageWalk {
    uint64_t gpa_page = 0; // of the 4 KiB page
    PageSize size = PageSize::Small;
    bool writable = false; // for the privilege asked for
    bool user = false;     // U/S set at every level
    bool global = false;
    bool dirty = false;
};

// Walks the tables for one access and sets A and D bits. False: `error` is the #PF error code (SDM vol. 3, 4.7). The
// caller has checked that `linear` is canonical (or below 4 GiB). In the file that is compiled for general registers.
bool walk_page(Cpu& cpu, uint64_t linear, Access access, Privilege privilege, PageWalk& walk, uint32_t& error) noexcept;

// Where a part of one page is, for chunked accesses. `host` is null for MMIO; `direct` says that the host bytes may be
// written without telling the translator (RAM without translated code); `noted`, that the log of stores has the page.
struct PageAccess {
    uint64_t gpa = 0;
    std::byte* host = nullptr;
    bool direct = false;
    bool read_only = false; // ROM: writes go to GuestIo
    bool noted = false;
};
// Looks in the TLB first and fills it. False: Cpu::fault is #PF, or #GP (#SS where `stack`) for a non-canonical
// address.
bool access_page(Cpu& cpu, uint64_t linear, Access access, Privilege privilege, PageAccess& page,
                 bool stack = false) noexcept;
// The bytes of one page that access_page() found; at most to the page's end.
void page_read(Cpu& cpu, PageAccess const& page, void* to, size_t size) noexcept;
void page_write(Cpu& cpu, PageAccess const& page, void const* from, size_t size) noexcept;
// After a store to page.host that page_write() did not do: `size` bytes from there on.
void page_stored(Cpu& cpu, PageAccess const& page, size_t size) noexcept;

// memory_read() and memory_write() by privilege. Sizes of 0 to 4,096 bytes.
bool linear_read(Cpu& cpu, uint64_t linear, void* to, size_t size, Privilege privilege, bool stack = false) noexcept;
bool linear_write(Cpu& cpu, uint64_t linear, void const* from, size_t size, Privilege privilege,
                  bool stack = false) noexcept;
bool linear_check_write(Cpu& cpu, uint64_t linear, size_t size, Privilege privilege, bool stack = false) noexcept;

// In PAE paging a load of CR3 checks the four PDPTEs (SDM vol. 3, 4.4.1). False where one has reserved bits set.
bool pae_pointers_valid(Cpu& cpu, uint64_t cr3) noexcept;

// Drops what set 0 may no longer hold when AC was cleared, or CPL 3 left, under SMAP.
void drop_user_pages_from_supervisor_set(Cpu& cpu) noexcept;

} // namespace coffer::vmm::soft
