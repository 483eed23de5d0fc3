// LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR, LSL, VERR, VERW and ARPL (Intel SDM vol. 2).
#include <cstring>

#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/segments.hpp"

namespace coffer::vmm::soft {

namespace {

size_t base_size(Cpu const& cpu) noexcept {
    return cpu.mode.code_bits == 64 ? 8 : 4;
}

void set_zf(Cpu& cpu, bool value) noexcept {
    cpu.rflags = value ? cpu.rflags | k_zf : cpu.rflags & ~k_zf;
}

// Whether the current level may see the descriptor: conforming code always, else DPL >= CPL and RPL.
bool visible(Cpu const& cpu, uint16_t selector, Descriptor const& descriptor) noexcept {
    if (descriptor.conforming()) return true;
    return descriptor.dpl() >= cpu.mode.cpl && descriptor.dpl() >= selector_rpl(selector);
}

bool type_has_rights(Cpu const& cpu, unsigned type) noexcept {
    switch (type) {
    case k_type_ldt:
    case k_type_tss_available:
    case k_type_tss_busy:
    case k_type_call_gate: return true;
    case k_type_tss16_available:
    case k_type_tss16_busy:
    case k_type_call_gate16:
    case k_type_task_gate: return !cpu.mode.long_mode;
    default: return false;
    }
}

bool type_has_limit(Cpu const& cpu, unsigned type) noexcept {
    return type_has_rights(cpu, type) && type != k_type_call_gate && type != k_type_call_gate16 &&
           type != k_type_task_gate;
}

} // namespace

Step load_descriptor_table(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    std::array<uint8_t, 10> raw{};
    if (!read_memory_operand(cpu, insn, operand(insn, 0), raw.data(), 2 + base_size(cpu))) return Step::Fault;
    DescriptorTable table;
    std::memcpy(&table.limit, raw.data(), 2);
    std::memcpy(&table.base, raw.data() + 2, 8);
    if (cpu.mode.code_bits == 64) {
        if (!is_canonical(table.base)) return fault(cpu, Vector::GP, 0);
    } else {
        table.base &= insn.decoded->operand_width == 16 ? 0xFFFFFF : 0xFFFFFFFF;
    }
    (mnemonic(insn) == ZYDIS_MNEMONIC_LGDT ? cpu.gdtr : cpu.idtr) = table;
    return done_leave(cpu, insn);
}

Step store_descriptor_table(Cpu& cpu, Insn const& insn) noexcept {
    if (!umip_allows(cpu)) return Step::Fault;
    DescriptorTable const& table = mnemonic(insn) == ZYDIS_MNEMONIC_SGDT ? cpu.gdtr : cpu.idtr;
    std::array<uint8_t, 10> raw{};
    std::memcpy(raw.data(), &table.limit, 2);
    std::memcpy(raw.data() + 2, &table.base, 8);
    if (!write_memory_operand(cpu, insn, operand(insn, 0), raw.data(), 2 + base_size(cpu))) return Step::Fault;
    return done(cpu, insn);
}

Step load_system_segment(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_protected(cpu) || !require_cpl0(cpu)) return Step::Fault;
    uint64_t raw = 0;
    if (!read_operand(cpu, insn, operand(insn, 0), raw)) return Step::Fault;
    auto const selector = static_cast<uint16_t>(raw);
    bool const loaded =
        mnemonic(insn) == ZYDIS_MNEMONIC_LLDT ? load_ldtr(cpu, selector) : load_task_register(cpu, selector);
    return loaded ? done_leave(cpu, insn) : Step::Fault;
}

Step store_system_segment(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_protected(cpu) || !umip_allows(cpu)) return Step::Fault;
    uint16_t const selector = (mnemonic(insn) == ZYDIS_MNEMONIC_SLDT ? cpu.ldtr : cpu.tr).selector;
    Operand const& to = operand(insn, 0);
    if (is_register(to))
        write_register(cpu, to.reg.value, selector);
    else if (!write_memory_operand(cpu, insn, to, &selector, sizeof selector))
        return Step::Fault;
    return done(cpu, insn);
}

Step load_access_rights(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_protected(cpu)) return Step::Fault;
    Operand const& from = operand(insn, 1);
    uint64_t raw = 0;
    if (is_register(from))
        raw = read_register(cpu, from.reg.value);
    else if (!read_memory_operand(cpu, insn, from, &raw, 2))
        return Step::Fault;
    auto const selector = static_cast<uint16_t>(raw);
    bool const rights = mnemonic(insn) == ZYDIS_MNEMONIC_LAR;

    Descriptor descriptor;
    bool valid = false;
    if (!is_null(selector)) {
        Lookup const lookup = find_descriptor(cpu, selector, descriptor);
        if (lookup == Lookup::Fault) return Step::Fault;
        bool const known = !descriptor.system() ||
                           (rights ? type_has_rights(cpu, descriptor.type()) : type_has_limit(cpu, descriptor.type()));
        valid = lookup == Lookup::Found && known && visible(cpu, selector, descriptor);
    }
    set_zf(cpu, valid);
    if (valid) {
        uint64_t const value = rights ? (descriptor.low >> 32) & 0x00F0'FF00 : descriptor.limit();
        write_register(cpu, operand(insn, 0).reg.value, value);
    }
    return done(cpu, insn);
}

Step verify_segment(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_protected(cpu)) return Step::Fault;
    uint64_t raw = 0;
    if (!read_operand(cpu, insn, operand(insn, 0), raw)) return Step::Fault;
    auto const selector = static_cast<uint16_t>(raw);
    Descriptor descriptor;
    bool valid = false;
    if (!is_null(selector)) {
        Lookup const lookup = find_descriptor(cpu, selector, descriptor);
        if (lookup == Lookup::Fault) return Step::Fault;
        bool const usable = mnemonic(insn) == ZYDIS_MNEMONIC_VERW ? descriptor.writable_data() : descriptor.readable();
        valid = lookup == Lookup::Found && usable && visible(cpu, selector, descriptor);
    }
    set_zf(cpu, valid);
    return done(cpu, insn);
}

Step adjust_rpl(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_protected(cpu)) return Step::Fault;
    Operand const& op = operand(insn, 0);
    uint64_t to = 0, from = 0;
    if (is_memory(op)) {
        uint64_t linear = 0;
        if (!operand_linear(cpu, insn, op, 2, Access::Write, linear)) return Step::Fault;
    }
    if (!read_operand(cpu, insn, op, to) || !read_operand(cpu, insn, operand(insn, 1), from)) return Step::Fault;
    bool const lower = (to & 3) < (from & 3);
    if (lower && !write_operand(cpu, insn, op, (to & ~uint64_t{3}) | (from & 3))) return Step::Fault;
    set_zf(cpu, lower);
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
