// IRET (Intel SDM vol. 2) and what it shares with far RET on the way to an outer level.
//
// Not emulated: returns to virtual-8086 mode and from nested tasks (NT); both raise #GP with a logged line.
#include "vmm/accel/soft/system/transfer.hpp"

#include "base/log.hpp"

namespace coffer::vmm::soft {

namespace {

// Flags that IRET takes from the stack at this CPL.
uint64_t restorable_flags(Cpu const& cpu, unsigned bits) noexcept {
    uint64_t mask = k_arithmetic_flags | k_tf | k_df | k_nt;
    if (bits > 16) mask |= k_rf | k_ac | k_id;
    unsigned const iopl = (cpu.rflags & k_iopl) >> 12;
    if (!cpu.mode.protected_mode) return mask | k_if | k_iopl;
    if (cpu.mode.cpl <= iopl) mask |= k_if;
    if (cpu.mode.cpl == 0) {
        mask |= k_iopl;
        if (bits > 16) mask |= k_vif | k_vip;
    }
    return mask;
}

bool refuse(Cpu& cpu, char const* what) noexcept {
    static log::RateLimit limit;
    if (limit.allow()) log::warning("soft: IRET {} is not emulated: #GP", what);
    return raise(cpu, Vector::GP, 0);
}

} // namespace

bool read_return_code(Cpu& cpu, uint16_t selector, Descriptor& code) noexcept {
    uint32_t const error = selector_error(selector);
    if (is_null(selector)) return raise(cpu, Vector::GP, 0);
    if (!read_descriptor(cpu, selector, code)) return false;
    unsigned const level = selector_rpl(selector);
    if (!code.code() || level < cpu.mode.cpl) return raise(cpu, Vector::GP, error);
    if (code.conforming() ? code.dpl() > level : code.dpl() != level) return raise(cpu, Vector::GP, error);
    if (cpu.mode.long_mode && code.long_code() && code.default_big()) return raise(cpu, Vector::GP, error);
    return code.present() || raise(cpu, Vector::NP, error);
}

bool read_return_stack(Cpu& cpu, uint16_t selector, unsigned level, bool long_code, Segment& ss) noexcept {
    if (is_null(selector)) {
        if (!cpu.mode.long_mode || !long_code || level == 3) return raise(cpu, Vector::GP, 0);
        ss = null_stack_segment(selector, level);
        return true;
    }
    return prepare_stack_segment(cpu, selector, level, Vector::GP, ss);
}

void enter_outer_level(Cpu& cpu, OuterReturn const& to) noexcept {
    bool const outer = to.level > cpu.mode.cpl;
    set_segment(cpu, SegmentName::Ss, to.ss);
    set_stack_pointer(cpu, to.pointer, stack_bits_of(cpu, to.ss, to.code.long_code()));
    enter_code_segment(cpu, to.selector, to.code, to.level, to.target);
    if (outer) drop_inner_segments(cpu, to.level);
    update_mode(cpu);
}

bool interrupt_return(Cpu& cpu, unsigned bits) noexcept {
    cpu.nmi_blocked = false; // even where IRET faults (SDM vol. 3, 6.7.1)
    size_t const width = bits / 8;
    uint64_t const mask = restorable_flags(cpu, bits);
    if (cpu.mode.protected_mode && (cpu.rflags & k_nt)) return refuse(cpu, "from a nested task");

    Stack stack(cpu);
    uint64_t target = 0, raw_selector = 0, flags = 0;
    if (!stack.pop(target, width) || !stack.pop(raw_selector, width) || !stack.pop(flags, width)) return false;
    auto const selector = static_cast<uint16_t>(raw_selector);
    uint64_t const new_flags = (cpu.rflags & ~mask) | (flags & mask) | k_fixed_flag;

    if (!cpu.mode.protected_mode) {
        if (target > cpu.segment(SegmentName::Cs).limit) return raise(cpu, Vector::GP, 0);
        stack.commit();
        load_segment(cpu, SegmentName::Cs, selector);
        cpu.rip = target;
        cpu.rflags = new_flags;
        update_mode(cpu);
        return true;
    }
    if (bits > 16 && (flags & k_vm) && cpu.mode.cpl == 0 && !cpu.mode.long_mode) {
        return refuse(cpu, "to virtual-8086 mode");
    }

    Descriptor code;
    if (!read_return_code(cpu, selector, code)) return false;
    unsigned const level = selector_rpl(selector);
    if (!check_far_target(cpu, code, target)) return false;

    // 64-bit mode always takes SS:RSP, the others on a change of level.
    if (cpu.mode.code_bits == 64 || level != cpu.mode.cpl) {
        uint64_t pointer = 0, stack_selector = 0;
        if (!stack.pop(pointer, width) || !stack.pop(stack_selector, width)) return false;
        Segment ss;
        if (!read_return_stack(cpu, static_cast<uint16_t>(stack_selector), level, code.long_code(), ss)) return false;
        if (!set_accessed(cpu, code)) return false;
        cpu.rflags = new_flags;
        enter_outer_level(
            cpu, {.selector = selector, .code = code, .target = target, .level = level, .ss = ss, .pointer = pointer});
        return true;
    }
    if (!set_accessed(cpu, code)) return false;
    stack.commit();
    cpu.rflags = new_flags;
    enter_code_segment(cpu, selector, code, level, target);
    update_mode(cpu);
    return true;
}

} // namespace coffer::vmm::soft
