// Far JMP, CALL and RET (Intel SDM vol. 2, their pages; vol. 3, 5.8).
//
// Not emulated: hardware task switches (through a TSS descriptor or a task gate) raise #GP with a logged line.
#include "vmm/accel/soft/system/transfer.hpp"

#include "base/log.hpp"

namespace coffer::vmm::soft {

namespace {

bool refuse_task_switch(Cpu& cpu, uint16_t selector) noexcept {
    static log::RateLimit limit;
    if (limit.allow()) log::warning("soft: a hardware task switch (selector {:#x}) is not emulated: #GP", selector);
    return raise(cpu, Vector::GP, selector_error(selector));
}

bool is_task(Descriptor const& descriptor) noexcept {
    unsigned const type = descriptor.type();
    return descriptor.system() &&
           (type == k_type_tss16_available || type == k_type_tss_available || type == k_type_task_gate);
}

bool is_call_gate(Cpu const& cpu, Descriptor const& descriptor) noexcept {
    if (!descriptor.system()) return false;
    return descriptor.type() == k_type_call_gate || (descriptor.type() == k_type_call_gate16 && !cpu.mode.long_mode);
}

// A code segment named by the branch itself, not by a gate.
bool check_direct_code(Cpu& cpu, uint16_t selector, Descriptor const& code) noexcept {
    uint32_t const error = selector_error(selector);
    if (!code.code()) return raise(cpu, Vector::GP, error);
    if (cpu.mode.long_mode && code.long_code() && code.default_big()) return raise(cpu, Vector::GP, error);
    if (code.conforming() ? code.dpl() > cpu.mode.cpl
                          : selector_rpl(selector) > cpu.mode.cpl || code.dpl() != cpu.mode.cpl) {
        return raise(cpu, Vector::GP, error);
    }
    return code.present() || raise(cpu, Vector::NP, error);
}

struct Gate {
    Descriptor gate;
    Descriptor code;
    uint16_t selector = 0;
    uint64_t target = 0;
    unsigned bits = 32;
};

bool read_gate(Cpu& cpu, uint16_t selector, Descriptor const& descriptor, Gate& gate) noexcept {
    gate.gate = descriptor;
    uint32_t const error = selector_error(selector);
    if (descriptor.dpl() < cpu.mode.cpl || descriptor.dpl() < selector_rpl(selector)) {
        return raise(cpu, Vector::GP, error);
    }
    if (!descriptor.present()) return raise(cpu, Vector::NP, error);
    if (cpu.mode.long_mode && !read_upper_half(cpu, selector, gate.gate)) return false;
    gate.selector = gate.gate.gate_selector();
    gate.bits = cpu.mode.long_mode ? 64 : descriptor.type() == k_type_call_gate ? 32 : 16;
    gate.target = gate.gate.gate_offset();
    if (gate.bits == 16) gate.target &= 0xFFFF;

    if (is_null(gate.selector)) return raise(cpu, Vector::GP, 0);
    if (!read_descriptor(cpu, gate.selector, gate.code)) return false;
    uint32_t const code_error = selector_error(gate.selector);
    if (!gate.code.code() || gate.code.dpl() > cpu.mode.cpl) return raise(cpu, Vector::GP, code_error);
    if (cpu.mode.long_mode && (!gate.code.long_code() || gate.code.default_big())) {
        return raise(cpu, Vector::GP, code_error);
    }
    return gate.code.present() || raise(cpu, Vector::NP, code_error);
}

bool call_inner_level(Cpu& cpu, Gate& gate, uint64_t next) noexcept {
    unsigned const level = gate.code.dpl();
    TaskStack task;
    if (!read_task_stack(cpu, level, task)) return false;
    size_t const width = gate.bits / 8;
    Segment ss;
    if (cpu.mode.long_mode)
        ss = null_stack_segment(static_cast<uint16_t>(level), level);
    else if (!prepare_stack_segment(cpu, task.selector, level, Vector::TS, ss))
        return false;

    Stack inner(cpu, ss, task.pointer, stack_bits_of(cpu, ss, gate.code.long_code()), Privilege::Supervisor,
                selector_error(ss.selector));
    if (!inner.push(cpu.segment(SegmentName::Ss).selector, width)) return false;
    if (!inner.push(cpu.reg(Gpr::Rsp) & mask_bits(gate.bits), width)) return false;
    if (!cpu.mode.long_mode) {
        Stack outer(cpu);
        unsigned const parameters = (gate.gate.low >> 32) & 0x1F;
        for (unsigned i = parameters; i-- > 0;) {
            uint64_t value = 0;
            if (!outer.peek(value, width, i * width) || !inner.push(value, width)) return false;
        }
    }
    if (!inner.push(cpu.segment(SegmentName::Cs).selector, width) || !inner.push(next, width)) return false;
    if (!check_far_target(cpu, gate.code, gate.target) || !set_accessed(cpu, gate.code)) return false;
    set_segment(cpu, SegmentName::Ss, ss);
    inner.commit();
    enter_code_segment(cpu, gate.selector, gate.code, level, gate.target);
    update_mode(cpu);
    return true;
}

bool real_mode_branch(Cpu& cpu, uint16_t selector, uint64_t offset) noexcept {
    if (offset > cpu.segment(SegmentName::Cs).limit) return raise(cpu, Vector::GP, 0);
    load_segment(cpu, SegmentName::Cs, selector);
    cpu.rip = offset;
    update_mode(cpu);
    return true;
}

} // namespace

bool far_jump(Cpu& cpu, uint16_t selector, uint64_t offset) noexcept {
    if (!cpu.mode.protected_mode) return real_mode_branch(cpu, selector, offset);
    if (is_null(selector)) return raise(cpu, Vector::GP, 0);
    Descriptor descriptor;
    if (!read_descriptor(cpu, selector, descriptor)) return false;
    if (is_task(descriptor)) return refuse_task_switch(cpu, selector);

    if (is_call_gate(cpu, descriptor)) {
        Gate gate;
        if (!read_gate(cpu, selector, descriptor, gate)) return false;
        if (!gate.code.conforming() && gate.code.dpl() != cpu.mode.cpl) {
            return raise(cpu, Vector::GP, selector_error(gate.selector));
        }
        if (!check_far_target(cpu, gate.code, gate.target) || !set_accessed(cpu, gate.code)) return false;
        enter_code_segment(cpu, gate.selector, gate.code, cpu.mode.cpl, gate.target);
    } else {
        if (!check_direct_code(cpu, selector, descriptor)) return false;
        if (!check_far_target(cpu, descriptor, offset) || !set_accessed(cpu, descriptor)) return false;
        enter_code_segment(cpu, selector, descriptor, cpu.mode.cpl, offset);
    }
    update_mode(cpu);
    return true;
}

bool far_call(Cpu& cpu, uint16_t selector, uint64_t offset, unsigned bits, uint64_t next) noexcept {
    uint16_t const old_cs = cpu.segment(SegmentName::Cs).selector;
    Stack stack(cpu);
    if (!cpu.mode.protected_mode) {
        if (offset > cpu.segment(SegmentName::Cs).limit) return raise(cpu, Vector::GP, 0);
        if (!stack.push(old_cs, bits / 8) || !stack.push(next, bits / 8)) return false;
        stack.commit();
        return real_mode_branch(cpu, selector, offset);
    }
    if (is_null(selector)) return raise(cpu, Vector::GP, 0);
    Descriptor descriptor;
    if (!read_descriptor(cpu, selector, descriptor)) return false;
    if (is_task(descriptor)) return refuse_task_switch(cpu, selector);

    Gate gate{.gate = {}, .code = descriptor, .selector = selector, .target = offset, .bits = bits};
    if (is_call_gate(cpu, descriptor)) {
        if (!read_gate(cpu, selector, descriptor, gate)) return false;
        if (!gate.code.conforming() && gate.code.dpl() < cpu.mode.cpl) return call_inner_level(cpu, gate, next);
    } else if (!check_direct_code(cpu, selector, descriptor)) {
        return false;
    }
    if (!stack.push(old_cs, gate.bits / 8) || !stack.push(next, gate.bits / 8)) return false;
    if (!check_far_target(cpu, gate.code, gate.target) || !set_accessed(cpu, gate.code)) return false;
    stack.commit();
    enter_code_segment(cpu, gate.selector, gate.code, cpu.mode.cpl, gate.target);
    update_mode(cpu);
    return true;
}

bool far_return(Cpu& cpu, unsigned bits, uint64_t release) noexcept {
    size_t const width = bits / 8;
    Stack stack(cpu);
    uint64_t target = 0, raw_selector = 0;
    if (!stack.pop(target, width) || !stack.pop(raw_selector, width)) return false;
    auto const selector = static_cast<uint16_t>(raw_selector);
    stack.skip(release);
    if (!cpu.mode.protected_mode) {
        if (!real_mode_branch(cpu, selector, target)) return false;
        stack.commit();
        return true;
    }

    Descriptor code;
    if (!read_return_code(cpu, selector, code)) return false;
    if (!check_far_target(cpu, code, target)) return false;
    unsigned const level = selector_rpl(selector);
    if (level == cpu.mode.cpl) {
        if (!set_accessed(cpu, code)) return false;
        stack.commit();
        enter_code_segment(cpu, selector, code, level, target);
        update_mode(cpu);
        return true;
    }

    uint64_t pointer = 0, stack_selector = 0;
    if (!stack.pop(pointer, width) || !stack.pop(stack_selector, width)) return false;
    Segment ss;
    if (!read_return_stack(cpu, static_cast<uint16_t>(stack_selector), level, code.long_code(), ss)) return false;
    if (!set_accessed(cpu, code)) return false;
    enter_outer_level(
        cpu,
        {.selector = selector, .code = code, .target = target, .level = level, .ss = ss, .pointer = pointer + release});
    return true;
}

} // namespace coffer::vmm::soft
