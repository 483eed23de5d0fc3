// What all control transfers share: stacks being switched to, targets, the task state segment's stacks.
#include "vmm/accel/soft/system/transfer.hpp"

namespace coffer::vmm::soft {

unsigned stack_bits_of(Cpu const& cpu, Segment const& ss, bool long_code) noexcept {
    if (cpu.mode.long_mode && long_code) return 64;
    return (ss.attributes & k_segment_db) ? 32 : 16;
}

void set_stack_pointer(Cpu& cpu, uint64_t value, unsigned bits) noexcept {
    // A 32-bit stack pointer clears the upper half as every 32-bit write does; a 16-bit one keeps the rest.
    uint64_t& rsp = cpu.reg(Gpr::Rsp);
    rsp = bits == 16 ? (rsp & ~uint64_t{0xFFFF}) | (value & 0xFFFF) : value & mask_bits(bits);
}

Stack::Stack(Cpu& cpu) noexcept
    : m_cpu(cpu), m_segment(cpu.segment(SegmentName::Ss)), m_pointer(0), m_bits(cpu.mode.stack_bits),
      m_privilege(current_privilege(cpu)), m_error(0) {
    m_pointer = wrap(cpu.reg(Gpr::Rsp));
}

bool Stack::locate(uint64_t offset, size_t size, Access access, uint64_t& linear) noexcept {
    if (m_bits == 64) {
        linear = offset;
        return true;
    }
    return check_segment(m_cpu, m_segment, true, offset, size, access, m_error, linear);
}

bool Stack::push(uint64_t value, size_t size) noexcept {
    uint64_t const offset = wrap(m_pointer - size);
    uint64_t linear = 0;
    if (!locate(offset, size, Access::Write, linear)) return false;
    if (!linear_write(m_cpu, linear, &value, size, m_privilege, true)) {
        if (m_cpu.fault.vector == Vector::SS) m_cpu.fault.error = m_error;
        return false;
    }
    m_pointer = offset;
    return true;
}

bool Stack::peek(uint64_t& value, size_t size, uint64_t above) noexcept {
    uint64_t linear = 0;
    value = 0;
    return locate(wrap(m_pointer + above), size, Access::Read, linear) &&
           linear_read(m_cpu, linear, &value, size, m_privilege, true);
}

bool Stack::pop(uint64_t& value, size_t size) noexcept {
    if (!peek(value, size, 0)) return false;
    skip(size);
    return true;
}

void Stack::commit() noexcept {
    set_stack_pointer(m_cpu, m_pointer, m_bits);
}

bool check_branch_target(Cpu& cpu, uint64_t target) noexcept {
    if (cpu.mode.code_bits == 64) return is_canonical(target) || raise(cpu, Vector::GP, 0);
    return target <= cpu.segment(SegmentName::Cs).limit || raise(cpu, Vector::GP, 0);
}

bool check_far_target(Cpu& cpu, Descriptor const& code, uint64_t target) noexcept {
    if (cpu.mode.long_mode && code.long_code()) return is_canonical(target) || raise(cpu, Vector::GP, 0);
    return target <= code.limit() || raise(cpu, Vector::GP, 0);
}

void enter_code_segment(Cpu& cpu, uint16_t selector, Descriptor const& code, unsigned cpl, uint64_t target) noexcept {
    auto with_cpl = static_cast<uint16_t>((selector & 0xFFFC) | cpl);
    set_segment(cpu, SegmentName::Cs, make_segment(with_cpl, code));
    cpu.rip = target;
}

bool read_task_stack(Cpu& cpu, unsigned level, TaskStack& stack) noexcept {
    uint32_t const error = selector_error(cpu.tr.selector);
    unsigned const type = cpu.tr.attributes & k_segment_type;
    bool const small = type == k_type_tss16_busy || type == k_type_tss16_available;
    uint64_t const offset = cpu.mode.long_mode ? 4 + 8 * level : small ? 2 + 4 * level : 4 + 8 * level;
    size_t const size = cpu.mode.long_mode ? 8 : small ? 4 : 8;
    if (offset + size - 1 > cpu.tr.limit) return raise(cpu, Vector::TS, error);
    uint64_t raw = 0;
    if (!linear_read(cpu, cpu.tr.base + offset, &raw, size, Privilege::Implicit)) return false;
    if (cpu.mode.long_mode)
        stack = {.selector = static_cast<uint16_t>(level), .pointer = raw};
    else if (small)
        stack = {.selector = static_cast<uint16_t>(raw >> 16), .pointer = raw & 0xFFFF};
    else
        stack = {.selector = static_cast<uint16_t>(raw >> 32), .pointer = raw & 0xFFFFFFFF};
    return true;
}

} // namespace coffer::vmm::soft
