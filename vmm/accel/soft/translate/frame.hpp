// What emitted code runs on: the state pointer (host RSP) points at a Frame, with a small stack below it. Emitted code
// leaves by `jmp [rsp + Frame::exit]` with a Site in r15 that says why; C++ does the work and enters again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "vmm/accel/soft/cpu.hpp"
#include "vmm/accel/soft/translate/decode.hpp"

namespace coffer::vmm::soft {

struct Block;

// Why emitted code came back, and what about. One for each place that can leave.
enum class SiteKind : uint8_t {
    Link,     // a direct edge that is not linked yet: `rip` is the target
    Indirect, // the jump cache missed: Cpu::rip is the target
    Poll,     // attention was set on a backward edge: `rip` is the target
    Access,   // a memory access that the TLB does not hold, and fill_tlb() refused: the instruction is at `rip`
    System,   // an instruction for C++: at `rip`
    Raise,    // the instruction at `rip` raises `vector`
    Fetch,    // translation stopped before the instruction at `rip`: interpret it
};

struct Site {
    SiteKind kind = SiteKind::Link;
    bool write = false;         // Access: a store or read-modify-write
    uint16_t size = 0;          // Access: in bytes
    bool flags_in_slot = false; // the guest's flags are in Frame::flag_slot, not in EFLAGS
    uint8_t length = 0;         // of the instruction
    Vector vector = Vector::UD;
    bool cross_page = false; // Link: depends on address translation
    uint64_t rip = 0;
    uint8_t const* retry = nullptr;  // Access: the check again, with r14 the linear address. Known to the assembly
    uint8_t const* resume = nullptr; // Access, System: behind the instruction
    uint32_t patch = 0;              // Link: where its rel32 is, as an offset in the code memory
    uint32_t stub = 0;               // Link: where the rel32 goes while not linked
    Block* block = nullptr;
    Site* next_incoming = nullptr; // Link: in the target's list
    Block* target = nullptr;       // Link: the block it is linked to
    std::array<uint8_t, 15> bytes{};
};

struct JumpEntry {
    uint64_t tag;  // -(rip + salt)
    uint64_t code; // host address of the block's entry
};
constexpr size_t k_jump_entries = 65536; // indexed by the low 16 bits of RIP

struct alignas(64) Frame {
    Cpu cpu;
    // -- emitted code --
    uint64_t flag_slot = 0;                      // guest flags as LAHF and SETO AL leave them in AX
    std::array<uint64_t, 2> spare{};             // within one instruction
    uint64_t saved = 0;                          // RAX or RCX while scaffolding borrows it
    uint64_t value = 0;                          // between two accesses of one instruction
    std::array<std::atomic<uint64_t>, 2> salt{}; // CPL 0-2, CPL 3; any thread stores k_salt_poison to force exits
    uint64_t exit = 0;                           // addresses of the trampolines
    uint64_t cold = 0;
    // -- the trampolines and C++ --
    uint64_t entry = 0;
    uint64_t linear = 0;  // r14 at entry and exit
    Site* site = nullptr; // r15 at exit; null for a host fault
    uint64_t host_rsp = 0;
    uint64_t host_flags = 0; // EFLAGS at entry and exit
    uint64_t fault_vector = 0;
    uint64_t fault_address = 0;
    uint32_t host_mxcsr = 0x1F80;
    alignas(64) std::array<JumpEntry, k_jump_entries> jumps{};
};

// Never the salt of an entry: differs in the lowest bit.
constexpr uint64_t k_salt_poison = 1;

// Offsets from the state pointer.
namespace offset {
constexpr int32_t gpr = static_cast<int32_t>(offsetof(Cpu, gpr));
constexpr int32_t rip = static_cast<int32_t>(offsetof(Cpu, rip));
constexpr int32_t thread_bases = static_cast<int32_t>(offsetof(Cpu, thread_bases));
constexpr int32_t attention = static_cast<int32_t>(offsetof(Cpu, attention));
constexpr int32_t tlb = static_cast<int32_t>(offsetof(Cpu, tlb));
constexpr int32_t flag_slot = static_cast<int32_t>(offsetof(Frame, flag_slot));
constexpr int32_t spare = static_cast<int32_t>(offsetof(Frame, spare));
constexpr int32_t saved = static_cast<int32_t>(offsetof(Frame, saved));
constexpr int32_t value = static_cast<int32_t>(offsetof(Frame, value));
constexpr int32_t salt = static_cast<int32_t>(offsetof(Frame, salt));
constexpr int32_t exit = static_cast<int32_t>(offsetof(Frame, exit));
constexpr int32_t cold = static_cast<int32_t>(offsetof(Frame, cold));
constexpr int32_t jumps = static_cast<int32_t>(offsetof(Frame, jumps));
} // namespace offset

// Runs emitted code at Frame::entry until it leaves. Takes registers, FPU state and flags (Frame::host_flags) from the
// frame and puts them back.
extern "C" void coffer_soft_enter(Frame* frame);
extern "C" void coffer_soft_exit();  // jumped to, with a Site in r15
extern "C" void coffer_soft_cold();  // jumped to, with a linear address in r14 and an Access site in r15
extern "C" void coffer_soft_fault(); // a host fault continues here

} // namespace coffer::vmm::soft
