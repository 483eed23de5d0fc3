// MOVS, STOS, LODS, CMPS and SCAS with all repeat prefixes (Intel SDM vol. 2, "REP").
//
// Repeated forms work page by page: the elements that lie in one page at either end are one chunk. Registers are exact
// after every chunk, so that a fault in the middle, or an interrupt between two chunks, finds them as hardware leaves
// them. A chunk is copied at once only where that gives what one element after the other would give.
#include <algorithm>
#include <cstring>

#include "vmm/accel/soft/system/handlers.hpp"

namespace coffer::vmm::soft {

namespace {

enum class Kind : uint8_t { Move, Store, Load, Compare, Scan };

struct Operation {
    Kind kind = Kind::Move;
    size_t size = 1;     // bytes of an element
    unsigned width = 64; // address bits
    uint8_t repeat = 0;  // F2, F3 or 0
    bool down = false;   // DF
    bool uses_source = false;
    bool uses_target = false;
    SegmentName source = SegmentName::Ds;
};

bool is_source(Operand const& op) noexcept {
    return is_memory(op) &&
           (op.mem.base == ZYDIS_REGISTER_SI || op.mem.base == ZYDIS_REGISTER_ESI || op.mem.base == ZYDIS_REGISTER_RSI);
}

Operation describe(Cpu const& cpu, Insn const& insn) noexcept {
    Operation op;
    uint8_t const opcode = insn.decoded->opcode;
    switch (opcode & 0xFE) {
    case 0xA4: op.kind = Kind::Move; break;
    case 0xA6: op.kind = Kind::Compare; break;
    case 0xAA: op.kind = Kind::Store; break;
    case 0xAC: op.kind = Kind::Load; break;
    default: op.kind = Kind::Scan; break;
    }
    op.uses_source = op.kind == Kind::Move || op.kind == Kind::Load || op.kind == Kind::Compare;
    op.uses_target = op.kind != Kind::Load;
    op.size = (opcode & 1) ? insn.decoded->operand_width / 8 : 1;
    op.width = insn.decoded->address_width;
    op.repeat = repeat_prefix(insn);
    op.down = cpu.rflags & k_df;
    for (size_t i = 0; i < insn.decoded->operand_count; ++i) {
        if (is_source(operand(insn, i))) op.source = segment_name(operand(insn, i).mem.segment);
    }
    return op;
}

// One end of a chunk: its lowest address, wherever the elements start.
struct End {
    uint64_t linear = 0;
    PageAccess page;
};

struct Chunk {
    uint64_t elements = 1;
    bool split = false; // the one element crosses a page: no PageAccess
    End source, target;
};

// How many elements from `offset` on stay within the page of `linear` and do not wrap; 0 where not even the first does.
uint64_t elements_in_page(Operation const& op, uint64_t offset, uint64_t linear) noexcept {
    uint64_t const in_page = linear & ~k_page_mask;
    uint64_t const mask = mask_bits(op.width);
    if (in_page + op.size > k_page_size || offset > mask - (op.size - 1)) return 0;
    if (op.down) return std::min(in_page, offset) / op.size + 1;
    uint64_t const until_wrap = (mask - offset) / op.size + (((mask - offset) % op.size) + 1 == op.size ? 1 : 0);
    return std::min((k_page_size - in_page) / op.size, until_wrap);
}

bool locate(Cpu& cpu, Operation const& op, SegmentName segment, uint64_t offset, uint64_t elements, Access access,
            uint64_t& linear) noexcept {
    uint64_t const low = op.down ? offset - (elements - 1) * op.size : offset;
    return segment_to_linear(cpu, segment, low & mask_bits(op.width), elements * op.size, access, linear);
}

bool locate_both(Cpu& cpu, Operation const& op, Chunk& chunk, uint64_t elements) noexcept {
    Access const target_access = op.kind == Kind::Move || op.kind == Kind::Store ? Access::Write : Access::Read;
    if (op.uses_source &&
        !locate(cpu, op, op.source, read_gpr(cpu, Gpr::Rsi, op.width), elements, Access::Read, chunk.source.linear)) {
        return false;
    }
    if (op.uses_target && !locate(cpu, op, SegmentName::Es, read_gpr(cpu, Gpr::Rdi, op.width), elements, target_access,
                                  chunk.target.linear)) {
        return false;
    }
    chunk.elements = elements;
    return true;
}

// The largest chunk of at most `count` elements that is in one page at either end and passes the segments' checks.
bool find_chunk(Cpu& cpu, Operation const& op, uint64_t count, Chunk& chunk) noexcept {
    if (!locate_both(cpu, op, chunk, 1)) return false;
    uint64_t elements = count;
    if (op.uses_source) {
        elements = std::min(elements, elements_in_page(op, read_gpr(cpu, Gpr::Rsi, op.width), chunk.source.linear));
    }
    if (op.uses_target) {
        elements = std::min(elements, elements_in_page(op, read_gpr(cpu, Gpr::Rdi, op.width), chunk.target.linear));
    }
    if (elements == 0) {
        chunk.split = true;
        return true;
    }
    if (elements > 1 && !locate_both(cpu, op, chunk, elements) && !locate_both(cpu, op, chunk, 1)) return false;

    Privilege const privilege = current_privilege(cpu);
    Access const target_access = op.kind == Kind::Move || op.kind == Kind::Store ? Access::Write : Access::Read;
    bool const stack = op.source == SegmentName::Ss;
    if (op.uses_source && !access_page(cpu, chunk.source.linear, Access::Read, privilege, chunk.source.page, stack)) {
        return false;
    }
    return !op.uses_target || access_page(cpu, chunk.target.linear, target_access, privilege, chunk.target.page);
}

void advance(Cpu& cpu, Operation const& op, uint64_t elements) noexcept {
    uint64_t const bytes = elements * op.size;
    uint64_t const step = op.down ? uint64_t{0} - bytes : bytes;
    if (op.uses_source) write_gpr(cpu, Gpr::Rsi, op.width, read_gpr(cpu, Gpr::Rsi, op.width) + step);
    if (op.uses_target) write_gpr(cpu, Gpr::Rdi, op.width, read_gpr(cpu, Gpr::Rdi, op.width) + step);
    if (op.repeat) write_gpr(cpu, Gpr::Rcx, op.width, read_gpr(cpu, Gpr::Rcx, op.width) - elements);
}

// The place of element `i` in the order of execution.
PageAccess element(Operation const& op, PageAccess page, uint64_t elements, uint64_t i) noexcept {
    uint64_t const at = (op.down ? elements - 1 - i : i) * op.size;
    page.gpa += at;
    if (page.host) page.host += at;
    return page;
}

bool plain_target(PageAccess const& page) noexcept {
    return page.host && !page.read_only;
}

void move_chunk(Cpu& cpu, Operation const& op, Chunk const& chunk) noexcept {
    size_t const bytes = chunk.elements * op.size;
    PageAccess const& from = chunk.source.page;
    PageAccess const& to = chunk.target.page;
    if (!from.host || !plain_target(to)) {
        for (uint64_t i = 0; i < chunk.elements; ++i) {
            std::array<uint8_t, 8> value;
            page_read(cpu, element(op, from, chunk.elements, i), value.data(), op.size);
            page_write(cpu, element(op, to, chunk.elements, i), value.data(), op.size);
        }
        return;
    }
    // Elements read what earlier ones wrote only where the target lies ahead of the source, within its length.
    auto const distance = op.down ? from.host - to.host : to.host - from.host;
    if (distance <= 0 || static_cast<size_t>(distance) >= bytes) {
        std::memmove(to.host, from.host, bytes);
    } else {
        for (uint64_t i = 0; i < chunk.elements; ++i) {
            std::array<uint8_t, 8> value;
            std::memcpy(value.data(), element(op, from, chunk.elements, i).host, op.size);
            std::memcpy(element(op, to, chunk.elements, i).host, value.data(), op.size);
        }
    }
    page_stored(cpu, to, bytes);
}

void store_chunk(Cpu& cpu, Operation const& op, Chunk const& chunk) noexcept {
    uint64_t const value = cpu.reg(Gpr::Rax);
    PageAccess const& to = chunk.target.page;
    if (!plain_target(to)) {
        for (uint64_t i = 0; i < chunk.elements; ++i) {
            page_write(cpu, element(op, to, chunk.elements, i), &value, op.size);
        }
        return;
    }
    size_t const bytes = chunk.elements * op.size;
    uint64_t const low = value & 0xFF;
    bool const uniform = (value & mask_bits(static_cast<unsigned>(op.size * 8))) ==
                         ((low * 0x0101010101010101) & mask_bits(static_cast<unsigned>(op.size * 8)));
    if (uniform) {
        std::memset(to.host, static_cast<int>(low), bytes);
    } else {
        for (size_t at = 0; at < bytes; at += op.size) std::memcpy(to.host + at, &value, op.size);
    }
    page_stored(cpu, to, bytes);
}

void compare_flags(Cpu& cpu, uint64_t left, uint64_t right, size_t size) noexcept {
    unsigned const bits = static_cast<unsigned>(size * 8);
    left &= mask_bits(bits);
    right &= mask_bits(bits);
    uint64_t const difference = (left - right) & mask_bits(bits);
    uint64_t flags = 0;
    if (left < right) flags |= k_cf;
    if (difference == 0) flags |= k_zf;
    if (difference >> (bits - 1)) flags |= k_sf;
    if (((left ^ right) & (left ^ difference)) >> (bits - 1)) flags |= k_of;
    if ((left ^ right ^ difference) & 0x10) flags |= k_af;
    if (!(__builtin_popcountll(difference & 0xFF) & 1)) flags |= k_pf;
    cpu.rflags = (cpu.rflags & ~k_arithmetic_flags) | flags;
}

// Whether a repeated comparison goes on after one that set these flags.
bool goes_on(Cpu const& cpu, Operation const& op) noexcept {
    return static_cast<bool>(cpu.rflags & k_zf) == (op.repeat == 0xF3);
}

// Elements until the repetition ends (itself included), or all of them.
uint64_t compare_chunk(Cpu& cpu, Operation const& op, Chunk const& chunk) noexcept {
    for (uint64_t i = 0; i < chunk.elements; ++i) {
        uint64_t left = cpu.reg(Gpr::Rax), right = 0;
        if (op.uses_source) page_read(cpu, element(op, chunk.source.page, chunk.elements, i), &left, op.size);
        page_read(cpu, element(op, chunk.target.page, chunk.elements, i), &right, op.size);
        compare_flags(cpu, left, right, op.size);
        if (!goes_on(cpu, op)) return i + 1;
    }
    return chunk.elements;
}

// One element that crosses pages or wraps: through the checked accesses.
bool split_element(Cpu& cpu, Operation const& op, Chunk const& chunk) noexcept {
    Privilege const privilege = current_privilege(cpu);
    uint64_t value = cpu.reg(Gpr::Rax), other = 0;
    if (op.uses_source && !linear_read(cpu, chunk.source.linear, &value, op.size, privilege)) return false;
    switch (op.kind) {
    case Kind::Move:
    case Kind::Store: return linear_write(cpu, chunk.target.linear, &value, op.size, privilege);
    case Kind::Load: write_gpr(cpu, Gpr::Rax, static_cast<unsigned>(op.size * 8), value); return true;
    case Kind::Compare:
    case Kind::Scan:
        if (!linear_read(cpu, chunk.target.linear, &other, op.size, privilege)) return false;
        compare_flags(cpu, value, other, op.size);
        return true;
    }
    return true;
}

// Executes a chunk; how many of its elements were done.
uint64_t run_chunk(Cpu& cpu, Operation const& op, Chunk const& chunk) noexcept {
    switch (op.kind) {
    case Kind::Move: move_chunk(cpu, op, chunk); return chunk.elements;
    case Kind::Store: store_chunk(cpu, op, chunk); return chunk.elements;
    case Kind::Load:
        for (uint64_t i = 0; i < chunk.elements; ++i) {
            uint64_t value = 0;
            page_read(cpu, element(op, chunk.source.page, chunk.elements, i), &value, op.size);
            write_gpr(cpu, Gpr::Rax, static_cast<unsigned>(op.size * 8), value);
        }
        return chunk.elements;
    case Kind::Compare:
    case Kind::Scan: return compare_chunk(cpu, op, chunk);
    }
    return chunk.elements;
}

} // namespace

Step string_instruction(Cpu& cpu, Insn const& insn) noexcept {
    Operation const op = describe(cpu, insn);
    bool const compares = op.kind == Kind::Compare || op.kind == Kind::Scan;
    uint64_t count = op.repeat ? read_gpr(cpu, Gpr::Rcx, op.width) : 1;
    while (count > 0) {
        Chunk chunk;
        // Single-stepping traps after every element.
        uint64_t const wanted = (cpu.rflags & k_tf) ? 1 : count;
        if (!find_chunk(cpu, op, wanted, chunk)) return Step::Fault;
        uint64_t completed = 1;
        if (chunk.split) {
            if (!split_element(cpu, op, chunk)) return Step::Fault;
        } else {
            completed = run_chunk(cpu, op, chunk);
        }
        advance(cpu, op, completed);
        count -= completed;
        if (compares && op.repeat && !goes_on(cpu, op)) break;
        if (count > 0 && ((cpu.rflags & k_tf) || cpu.attention.load(std::memory_order_relaxed) != 0)) {
            return Step::Leave; // at the instruction: it goes on with the registers as they are
        }
    }
    bool const stale = cpu.attention.load(std::memory_order_relaxed) & k_attention_stale_code;
    return stale ? done_leave(cpu, insn) : done(cpu, insn);
}

} // namespace coffer::vmm::soft
