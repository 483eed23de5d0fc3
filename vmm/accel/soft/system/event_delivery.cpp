// One event through the IDT (16-, 32- and 64-bit gates) or the real-mode vector table. Intel SDM vol. 3, 6.11 to 6.14,
// 20.1.4. Not emulated: task gates raise #GP with a logged line.
#include "vmm/accel/soft/system/transfer.hpp"

#include "base/log.hpp"

namespace coffer::vmm::soft {

namespace {

// Flags that every delivery clears; an interrupt gate clears IF as well.
constexpr uint64_t k_cleared = k_tf | k_nt | k_rf | k_vm;

struct Gate {
    Descriptor gate;
    Descriptor code;
    uint16_t selector = 0;
    uint64_t target = 0;
    unsigned bits = 32;
    unsigned ist = 0;
    bool interrupt = false;
};

uint32_t idt_error(uint8_t vector) noexcept {
    return uint32_t{vector} * 8 + 2;
}

bool read_gate(Cpu& cpu, Event const& event, Gate& gate) noexcept {
    bool const long_mode = cpu.mode.long_mode;
    uint32_t const error = idt_error(event.vector);
    uint64_t const offset = uint64_t{event.vector} * (long_mode ? 16 : 8);
    if (offset + (long_mode ? 15 : 7) > cpu.idtr.limit) return raise(cpu, Vector::GP, error);
    gate.gate.linear = cpu.idtr.base + offset;
    if (!linear_read(cpu, gate.gate.linear, &gate.gate.low, 8, Privilege::Implicit)) return false;
    if (long_mode && !linear_read(cpu, gate.gate.linear + 8, &gate.gate.high, 8, Privilege::Implicit)) return false;

    unsigned const type = gate.gate.type();
    bool const wide = type == k_type_interrupt || type == k_type_trap;
    bool const small = !long_mode && (type == k_type_interrupt16 || type == k_type_trap16);
    if (!gate.gate.system() || !(wide || small)) {
        if (gate.gate.system() && type == k_type_task_gate && !long_mode) {
            static log::RateLimit limit;
            if (limit.allow()) log::warning("soft: vector {:#x} has a task gate, not emulated: #GP", event.vector);
        }
        return raise(cpu, Vector::GP, error);
    }
    if (event.software && gate.gate.dpl() < cpu.mode.cpl) return raise(cpu, Vector::GP, error);
    if (!gate.gate.present()) return raise(cpu, Vector::NP, error);
    gate.selector = gate.gate.gate_selector();
    gate.target = gate.gate.gate_offset();
    gate.bits = long_mode ? 64 : wide ? 32 : 16;
    if (gate.bits == 16) gate.target &= 0xFFFF;
    gate.ist = long_mode ? (gate.gate.low >> 32) & 7 : 0;
    gate.interrupt = type == k_type_interrupt || type == k_type_interrupt16;

    uint32_t const code_error = selector_error(gate.selector);
    if (is_null(gate.selector)) return raise(cpu, Vector::GP, 0);
    if (!read_descriptor(cpu, gate.selector, gate.code)) return false;
    if (!gate.code.code() || gate.code.dpl() > cpu.mode.cpl) return raise(cpu, Vector::GP, code_error);
    if (long_mode && (!gate.code.long_code() || gate.code.default_big())) return raise(cpu, Vector::GP, code_error);
    if (!gate.code.present()) return raise(cpu, Vector::NP, code_error);
    return check_far_target(cpu, gate.code, gate.target);
}

uint64_t saved_flags(Cpu const& cpu, Event const& event) noexcept {
    return event.resume ? cpu.rflags | k_rf : cpu.rflags & ~k_rf;
}

void finish(Cpu& cpu, Gate const& gate, unsigned level) noexcept {
    enter_code_segment(cpu, gate.selector, gate.code, level, gate.target);
    cpu.rflags &= ~(k_cleared | (gate.interrupt ? k_if : 0));
    cpu.interrupt_shadow = false;
    update_mode(cpu);
}

bool push_frame(Cpu& cpu, Stack& stack, Event const& event, unsigned bits, bool with_stack) noexcept {
    size_t const width = bits / 8;
    if (with_stack) {
        if (!stack.push(cpu.segment(SegmentName::Ss).selector, width)) return false;
        if (!stack.push(cpu.reg(Gpr::Rsp) & mask_bits(bits), width)) return false;
    }
    if (!stack.push(saved_flags(cpu, event) & mask_bits(bits), width)) return false;
    if (!stack.push(cpu.segment(SegmentName::Cs).selector, width)) return false;
    if (!stack.push(event.return_rip & mask_bits(bits), width)) return false;
    return !event.has_error || stack.push(event.error, width);
}

// SDM vol. 3, 6.14: SS:RSP is always pushed, on a stack aligned to 16 bytes.
bool deliver_long(Cpu& cpu, Event const& event, Gate& gate) noexcept {
    unsigned const level = gate.code.conforming() ? cpu.mode.cpl : gate.code.dpl();
    bool const inner = level < cpu.mode.cpl;
    uint64_t pointer = cpu.reg(Gpr::Rsp);
    if (gate.ist != 0) {
        uint64_t const offset = 0x24 + 8 * uint64_t{gate.ist - 1};
        if (offset + 7 > cpu.tr.limit) return raise(cpu, Vector::TS, selector_error(cpu.tr.selector));
        if (!linear_read(cpu, cpu.tr.base + offset, &pointer, 8, Privilege::Implicit)) return false;
    } else if (inner) {
        TaskStack task;
        if (!read_task_stack(cpu, level, task)) return false;
        pointer = task.pointer;
    }
    Segment ss = cpu.segment(SegmentName::Ss);
    if (inner) ss = null_stack_segment(static_cast<uint16_t>(level), level);
    Stack stack(cpu, ss, pointer & ~uint64_t{15}, 64, level == 3 ? Privilege::User : Privilege::Supervisor, 0);
    if (!push_frame(cpu, stack, event, 64, true) || !set_accessed(cpu, gate.code)) return false;
    set_segment(cpu, SegmentName::Ss, ss);
    stack.commit();
    finish(cpu, gate, level);
    return true;
}

bool deliver_protected(Cpu& cpu, Event const& event, Gate& gate) noexcept {
    bool const inner = !gate.code.conforming() && gate.code.dpl() < cpu.mode.cpl;
    if (!inner) {
        Stack stack(cpu);
        if (!push_frame(cpu, stack, event, gate.bits, false) || !set_accessed(cpu, gate.code)) return false;
        stack.commit();
        finish(cpu, gate, cpu.mode.cpl);
        return true;
    }
    unsigned const level = gate.code.dpl();
    TaskStack task;
    if (!read_task_stack(cpu, level, task)) return false;
    Segment ss;
    if (!prepare_stack_segment(cpu, task.selector, level, Vector::TS, ss)) return false;
    Stack stack(cpu, ss, task.pointer, stack_bits_of(cpu, ss, false), Privilege::Supervisor,
                selector_error(ss.selector));
    if (!push_frame(cpu, stack, event, gate.bits, true) || !set_accessed(cpu, gate.code)) return false;
    set_segment(cpu, SegmentName::Ss, ss);
    stack.commit();
    finish(cpu, gate, level);
    return true;
}

bool deliver_real(Cpu& cpu, Event const& event) noexcept {
    uint64_t const offset = uint64_t{event.vector} * 4;
    if (offset + 3 > cpu.idtr.limit) return raise(cpu, Vector::GP, idt_error(event.vector));
    uint32_t entry = 0;
    if (!linear_read(cpu, cpu.idtr.base + offset, &entry, 4, Privilege::Implicit)) return false;
    Stack stack(cpu);
    if (!stack.push(cpu.rflags & 0xFFFF, 2) || !stack.push(cpu.segment(SegmentName::Cs).selector, 2)) return false;
    if (!stack.push(event.return_rip & 0xFFFF, 2)) return false;
    stack.commit();
    load_segment(cpu, SegmentName::Cs, static_cast<uint16_t>(entry >> 16));
    cpu.rip = entry & 0xFFFF;
    cpu.rflags &= ~(k_cleared | k_if | k_ac);
    cpu.interrupt_shadow = false;
    update_mode(cpu);
    return true;
}

} // namespace

bool deliver_event(Cpu& cpu, Event const& event) noexcept {
    bool delivered = false;
    if (!cpu.mode.protected_mode) {
        delivered = deliver_real(cpu, event);
    } else {
        Gate gate;
        delivered = read_gate(cpu, event, gate) &&
                    (cpu.mode.long_mode ? deliver_long(cpu, event, gate) : deliver_protected(cpu, event, gate));
    }
    if (delivered) return true;
    // EXT (SDM vol. 3, 6.13): the fault hit the delivery of something the program did not ask for.
    if (!event.software && cpu.fault.has_error && cpu.fault.vector != Vector::PF) cpu.fault.error |= 1;
    return false;
}

} // namespace coffer::vmm::soft
