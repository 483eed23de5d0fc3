// Descriptors, segment loads and segmented addressing. Intel SDM vol. 3, chapters 3 and 5.
#pragma once

#include "vmm/accel/soft/system/mmu.hpp"

namespace coffer::vmm::soft {

// A descriptor as memory holds it; `high` is the second half of a 16-byte one (long mode TSS, LDT and call gates).
struct Descriptor {
    uint64_t low = 0;
    uint64_t high = 0;
    uint64_t linear = 0; // where it stands, for the accessed and busy bits

    uint64_t base() const noexcept {
        return ((low >> 16) & 0xFFFFFF) | ((low >> 32) & 0xFF000000) | (high & 0xFFFFFFFF) << 32;
    }
    uint32_t limit() const noexcept {
        auto raw = static_cast<uint32_t>((low & 0xFFFF) | ((low >> 32) & 0xF0000));
        return (low & bit(55)) ? raw << 12 | 0xFFF : raw;
    }
    uint16_t attributes() const noexcept { return static_cast<uint16_t>((low >> 40) & 0xF0FF); }
    unsigned type() const noexcept { return attributes() & k_segment_type; }
    bool system() const noexcept { return !(attributes() & k_segment_s); }
    bool present() const noexcept { return attributes() & k_segment_present; }
    unsigned dpl() const noexcept { return segment_dpl(attributes()); }
    bool code() const noexcept { return !system() && (attributes() & k_segment_code); }
    bool conforming() const noexcept { return code() && (attributes() & k_segment_conforming); }
    bool writable_data() const noexcept { return !system() && !code() && (attributes() & k_segment_writable); }
    bool readable() const noexcept { return !system() && (!code() || (attributes() & k_segment_readable)); }
    bool long_code() const noexcept { return attributes() & k_segment_long; }
    bool default_big() const noexcept { return attributes() & k_segment_db; }

    // The parts of a call, interrupt or trap gate.
    uint16_t gate_selector() const noexcept { return static_cast<uint16_t>(low >> 16); }
    uint64_t gate_offset() const noexcept {
        return (low & 0xFFFF) | ((low >> 32) & 0xFFFF0000) | (high & 0xFFFFFFFF) << 32;
    }
};

// System descriptor types (SDM vol. 3, table 3-2).
constexpr unsigned k_type_tss16_available = 1, k_type_ldt = 2, k_type_tss16_busy = 3, k_type_call_gate16 = 4;
constexpr unsigned k_type_task_gate = 5, k_type_interrupt16 = 6, k_type_trap16 = 7, k_type_tss_available = 9;
constexpr unsigned k_type_tss_busy = 11, k_type_call_gate = 12, k_type_interrupt = 14, k_type_trap = 15;

constexpr bool is_null(uint16_t selector) noexcept {
    return (selector & 0xFFFC) == 0;
}
constexpr unsigned selector_rpl(uint16_t selector) noexcept {
    return selector & 3;
}
constexpr uint32_t selector_error(uint16_t selector) noexcept {
    return selector & 0xFFFC;
}

// What became of a look into the GDT or LDT.
enum class Lookup : uint8_t { Found, OutOfTable, Fault };
Lookup find_descriptor(Cpu& cpu, uint16_t selector, Descriptor& descriptor) noexcept;
// Raises `vector`(selector) where the table has no such entry.
bool read_descriptor(Cpu& cpu, uint16_t selector, Descriptor& descriptor, Vector vector = Vector::GP) noexcept;
// Reads the upper half of a system descriptor in long mode, and checks that its type field is 0.
bool read_upper_half(Cpu& cpu, uint16_t selector, Descriptor& descriptor) noexcept;
bool set_accessed(Cpu& cpu, Descriptor& descriptor) noexcept;

Segment make_segment(uint16_t selector, Descriptor const& descriptor) noexcept;
// SS as long mode loads it on the way to an inner level or back from SYSCALL: null, with `cpl` kept in DPL.
Segment null_stack_segment(uint16_t selector, unsigned cpl) noexcept;

// MOV, POP, LDS..: all registers but CS. Real mode loads selector and base alone (so limits above 64 KiB stay).
bool load_segment(Cpu& cpu, SegmentName name, uint16_t selector) noexcept;
// The checks and the load of SS for level `cpl` without changing it: `vector` is GP, or TS on a stack switch.
bool prepare_stack_segment(Cpu& cpu, uint16_t selector, unsigned cpl, Vector vector, Segment& segment) noexcept;
// On a return to an outer level: data segments that the new CPL may not use become null (SDM vol. 2, RET).
void drop_inner_segments(Cpu& cpu, unsigned cpl) noexcept;

void set_segment(Cpu& cpu, SegmentName name, Segment const& segment) noexcept; // keeps thread_bases in step

bool load_ldtr(Cpu& cpu, uint16_t selector) noexcept;
bool load_task_register(Cpu& cpu, uint16_t selector) noexcept;

// An offset into `segment` under its limit and type; a violation is #SS(error) for a stack and #GP(error) else.
bool check_segment(Cpu& cpu, Segment const& segment, bool stack, uint64_t offset, size_t size, Access access,
                   uint32_t error, uint64_t& linear) noexcept;

} // namespace coffer::vmm::soft
