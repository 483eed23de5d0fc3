// Control transfers between segments, modes and privilege levels: far branches, gates, IRET, events.
#pragma once

#include "vmm/accel/soft/system/segments.hpp"

namespace coffer::vmm::soft {

// A stack that is pushed to or popped from before RSP changes: the current one, or one that is being switched to.
class Stack {
public:
    explicit Stack(Cpu& cpu) noexcept;
    // `error` is the selector for #SS of a stack that is not SS yet. `bits` as Mode::stack_bits.
    Stack(Cpu& cpu, Segment const& segment, uint64_t pointer, unsigned bits, Privilege privilege,
          uint32_t error) noexcept
        : m_cpu(cpu), m_segment(segment), m_pointer(pointer), m_bits(bits), m_privilege(privilege), m_error(error) {}

    bool push(uint64_t value, size_t size) noexcept;
    bool pop(uint64_t& value, size_t size) noexcept;
    bool peek(uint64_t& value, size_t size, uint64_t above) noexcept;
    void skip(uint64_t bytes) noexcept { m_pointer = wrap(m_pointer + bytes); }
    uint64_t pointer() const noexcept { return m_pointer; }
    // Into RSP, as wide as the stack is.
    void commit() noexcept;

private:
    uint64_t wrap(uint64_t value) const noexcept { return value & mask_bits(m_bits); }
    bool locate(uint64_t offset, size_t size, Access access, uint64_t& linear) noexcept;

    Cpu& m_cpu;
    Segment m_segment;
    uint64_t m_pointer;
    unsigned m_bits;
    Privilege m_privilege;
    uint32_t m_error;
};

// RSP of a stack of `bits`: 16-bit stacks keep the upper bits.
void set_stack_pointer(Cpu& cpu, uint64_t value, unsigned bits) noexcept;
unsigned stack_bits_of(Cpu const& cpu, Segment const& ss, bool long_code) noexcept;

// A near branch to `target`, under the code segment's limit or the canonical rule. False: #GP(0).
bool check_branch_target(Cpu& cpu, uint64_t target) noexcept;
// The same for a code segment that is being loaded.
bool check_far_target(Cpu& cpu, Descriptor const& code, uint64_t target) noexcept;

// CS:RIP in one go; RPL becomes `cpl`. The descriptor's accessed bit is set by the caller.
void enter_code_segment(Cpu& cpu, uint16_t selector, Descriptor const& code, unsigned cpl, uint64_t target) noexcept;

// The stack for `level` from the task state segment; long mode gives no segment (SDM vol. 3, 8.2.1, 8.7).
struct TaskStack {
    uint16_t selector = 0;
    uint64_t pointer = 0;
};
bool read_task_stack(Cpu& cpu, unsigned level, TaskStack& stack) noexcept;

// Far branches. `bits` is the operand size; `next` the return address.
bool far_jump(Cpu& cpu, uint16_t selector, uint64_t offset) noexcept;
bool far_call(Cpu& cpu, uint16_t selector, uint64_t offset, unsigned bits, uint64_t next) noexcept;
bool far_return(Cpu& cpu, unsigned bits, uint64_t release) noexcept;
bool interrupt_return(Cpu& cpu, unsigned bits) noexcept;

// Parts of returns: CS and SS as RET and IRET check them, and the switch to an outer (or, in 64-bit mode, the same)
// level.
bool read_return_code(Cpu& cpu, uint16_t selector, Descriptor& code) noexcept;
bool read_return_stack(Cpu& cpu, uint16_t selector, unsigned level, bool long_code, Segment& ss) noexcept;
struct OuterReturn {
    uint16_t selector = 0;
    Descriptor code;
    uint64_t target = 0;
    unsigned level = 0;
    Segment ss;
    uint64_t pointer = 0;
};
void enter_outer_level(Cpu& cpu, OuterReturn const& to) noexcept;

// One event through the IDT or IVT.
struct Event {
    uint8_t vector = 0;
    bool software = false; // INT n, INT3, INTO: the gate's DPL counts
    bool external = false; // interrupts and hardware exceptions: EXT in error codes that it causes
    bool has_error = false;
    uint32_t error = 0;
    uint64_t return_rip = 0;
    bool resume = false; // RF in the saved flags: the instruction is to be tried again
};
// False: Cpu::fault is what went wrong on the way, and nothing changed but memory on the new stack.
bool deliver_event(Cpu& cpu, Event const& event) noexcept;

} // namespace coffer::vmm::soft
