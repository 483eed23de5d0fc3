// MOV to and from CR, DR and segment registers, LMSW, SMSW, CLTS, INVLPG, INVPCID, CLAC and STAC.
// Intel SDM vol. 3, 2.5, 4.10.4.1; vol. 2, MOV.
#include "vmm/accel/soft/system/handlers.hpp"
#include "vmm/accel/soft/system/segments.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr uint64_t k_cr0_paging = k_cr0_pg | k_cr0_wp | k_cr0_pe;
constexpr uint64_t k_cr4_paging = k_cr4_pse | k_cr4_pae | k_cr4_pge | k_cr4_smep | k_cr4_smap;

bool is_control_register(ZydisRegister reg) noexcept {
    return reg >= ZYDIS_REGISTER_CR0 && reg <= ZYDIS_REGISTER_CR15;
}
bool is_debug_register(ZydisRegister reg) noexcept {
    return reg >= ZYDIS_REGISTER_DR0 && reg <= ZYDIS_REGISTER_DR15;
}

bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer) noexcept {
    return (cr0 & k_cr0_pg) && (cr4 & k_cr4_pae) && !(efer & k_efer_lma);
}

Step read_control(Cpu& cpu, Insn const& insn, unsigned number) noexcept {
    uint64_t value = 0;
    switch (number) {
    case 0: value = cpu.cr0; break;
    case 2: value = cpu.cr2; break;
    case 3: value = cpu.cr3; break;
    case 4: value = cpu.cr4; break;
    case 8: value = cpu.interrupts ? cpu.interrupts->read_cr8() : 0; break;
    default: return fault(cpu, Vector::UD);
    }
    if (!require_cpl0(cpu)) return Step::Fault;
    write_register(cpu, operand(insn, 0).reg.value, value);
    return done(cpu, insn);
}

Step write_control(Cpu& cpu, Insn const& insn, unsigned number) noexcept {
    if (number == 1 || (number > 4 && number != 8)) return fault(cpu, Vector::UD);
    if (!require_cpl0(cpu)) return Step::Fault;
    uint64_t const value = read_register(cpu, operand(insn, 1).reg.value);
    switch (number) {
    case 0:
        if (!write_cr0(cpu, value)) return Step::Fault;
        break;
    case 2: cpu.cr2 = value; return done(cpu, insn);
    case 3:
        if (!write_cr3(cpu, value)) return Step::Fault;
        break;
    case 4:
        if (!write_cr4(cpu, value)) return Step::Fault;
        break;
    default:
        if (value > 15) return fault(cpu, Vector::GP, 0);
        if (cpu.interrupts) cpu.interrupts->write_cr8(static_cast<uint8_t>(value));
        break;
    }
    return done_leave(cpu, insn);
}

Step mov_segment(Cpu& cpu, Insn const& insn, SegmentName name) noexcept {
    if (name == SegmentName::Cs) return fault(cpu, Vector::UD);
    uint64_t selector = 0;
    if (!read_operand(cpu, insn, operand(insn, 1), selector)) return Step::Fault;
    if (!load_segment(cpu, name, static_cast<uint16_t>(selector))) return Step::Fault;
    if (name == SegmentName::Ss) cpu.interrupt_shadow = true;
    update_mode(cpu);
    return done_leave(cpu, insn);
}

} // namespace

bool write_cr0(Cpu& cpu, uint64_t value) noexcept {
    // Reserved bits of the lower half are ignored, those of the upper half fault.
    if (value >> 32) return raise(cpu, Vector::GP, 0);
    value = (value & k_cr0_writable) | k_cr0_et;
    if ((value & k_cr0_pg) && !(value & k_cr0_pe)) return raise(cpu, Vector::GP, 0);
    if ((value & k_cr0_nw) && !(value & k_cr0_cd)) return raise(cpu, Vector::GP, 0);
    uint64_t const changed = cpu.cr0 ^ value;
    uint64_t efer = cpu.efer;
    if (changed & k_cr0_pg) {
        if ((value & k_cr0_pg) && (efer & k_efer_lme)) {
            bool const long_cs = cpu.segment(SegmentName::Cs).attributes & k_segment_long;
            bool const tss16 = (cpu.tr.attributes & k_segment_type) == k_type_tss16_busy && !is_null(cpu.tr.selector);
            if (!(cpu.cr4 & k_cr4_pae) || long_cs || tss16) return raise(cpu, Vector::GP, 0);
            efer |= k_efer_lma;
        } else if (!(value & k_cr0_pg)) {
            if (cpu.mode.code_bits == 64) return raise(cpu, Vector::GP, 0);
            efer &= ~k_efer_lma;
        }
    }
    bool const pointers = (changed & (k_cr0_pg | k_cr0_cd | k_cr0_nw)) && pae_paging(value, cpu.cr4, efer);
    if (pointers && !pae_pointers_valid(cpu, cpu.cr3)) return raise(cpu, Vector::GP, 0);
    cpu.cr0 = value;
    cpu.efer = efer;
    if (changed & k_cr0_paging) flush_tlb_all(cpu);
    update_mode(cpu);
    return true;
}

bool write_cr3(Cpu& cpu, uint64_t value) noexcept {
    if (cpu.mode.long_mode && (value & ~k_physical_mask)) return raise(cpu, Vector::GP, 0);
    if (pae_paging(cpu.cr0, cpu.cr4, cpu.efer) && !pae_pointers_valid(cpu, value)) return raise(cpu, Vector::GP, 0);
    cpu.cr3 = value;
    flush_tlb_non_global(cpu);
    return true;
}

bool write_cr4(Cpu& cpu, uint64_t value) noexcept {
    if (value & ~k_cr4_writable) return raise(cpu, Vector::GP, 0);
    if ((cpu.efer & k_efer_lma) && !(value & k_cr4_pae)) return raise(cpu, Vector::GP, 0);
    uint64_t const changed = cpu.cr4 ^ value;
    bool const pointers = (changed & k_cr4_paging) && pae_paging(cpu.cr0, value, cpu.efer);
    if (pointers && !pae_pointers_valid(cpu, cpu.cr3)) return raise(cpu, Vector::GP, 0);
    cpu.cr4 = value;
    if (changed & k_cr4_paging) flush_tlb_all(cpu);
    update_mode(cpu);
    return true;
}

Step mov(Cpu& cpu, Insn const& insn) noexcept {
    Operand const& to = operand(insn, 0);
    Operand const& from = operand(insn, 1);
    if (is_register(from) && is_control_register(from.reg.value)) {
        return read_control(cpu, insn, static_cast<unsigned>(from.reg.value - ZYDIS_REGISTER_CR0));
    }
    if (is_register(to) && is_control_register(to.reg.value)) {
        return write_control(cpu, insn, static_cast<unsigned>(to.reg.value - ZYDIS_REGISTER_CR0));
    }
    if (is_register(from) && is_debug_register(from.reg.value)) {
        uint64_t value = 0;
        if (!read_dr(cpu, static_cast<unsigned>(from.reg.value - ZYDIS_REGISTER_DR0), value)) return Step::Fault;
        write_register(cpu, to.reg.value, value);
        return done(cpu, insn);
    }
    if (is_register(to) && is_debug_register(to.reg.value)) {
        uint64_t const value = read_register(cpu, from.reg.value);
        if (!write_dr(cpu, static_cast<unsigned>(to.reg.value - ZYDIS_REGISTER_DR0), value)) return Step::Fault;
        return done_leave(cpu, insn);
    }
    if (is_register(to) && is_segment_register(to.reg.value)) return mov_segment(cpu, insn, segment_name(to.reg.value));
    // Segment registers to memory (16 bits) or a register (zero-extended), and plain operands.
    uint64_t value = 0;
    if (!read_operand(cpu, insn, from, value) || !write_operand(cpu, insn, to, value)) return Step::Fault;
    return done(cpu, insn);
}

Step clts(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    cpu.cr0 &= ~k_cr0_ts;
    return done_leave(cpu, insn);
}

Step lmsw(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    uint64_t value = 0;
    if (!read_operand(cpu, insn, operand(insn, 0), value)) return Step::Fault;
    // PE can be set, not cleared.
    constexpr uint64_t low = k_cr0_mp | k_cr0_em | k_cr0_ts;
    if (!write_cr0(cpu, (cpu.cr0 & ~low) | (value & (low | k_cr0_pe)))) return Step::Fault;
    return done_leave(cpu, insn);
}

Step smsw(Cpu& cpu, Insn const& insn) noexcept {
    if (!umip_allows(cpu)) return Step::Fault;
    Operand const& to = operand(insn, 0);
    if (is_register(to)) {
        write_register(cpu, to.reg.value, cpu.cr0);
    } else {
        auto const low = static_cast<uint16_t>(cpu.cr0);
        if (!write_memory_operand(cpu, insn, to, &low, sizeof low)) return Step::Fault;
    }
    return done(cpu, insn);
}

Step invalidate_page(Cpu& cpu, Insn const& insn) noexcept {
    if (!require_cpl0(cpu)) return Step::Fault;
    Operand const& op = operand(insn, 0);
    uint64_t linear = effective_address(cpu, insn, op);
    SegmentName const name = segment_name(op.mem.segment);
    if (cpu.mode.code_bits != 64)
        linear = (linear + cpu.segment(name).base) & 0xFFFFFFFF;
    else if (name == SegmentName::Fs || name == SegmentName::Gs)
        linear += cpu.segment(name).base;
    flush_tlb_page(cpu, linear);
    return done_leave(cpu, insn);
}

Step invpcid(Cpu& cpu, Insn const& insn) noexcept {
    if (!cpu.mode.protected_mode) return fault(cpu, Vector::UD);
    if (!require_cpl0(cpu)) return Step::Fault;
    std::array<uint64_t, 2> descriptor{};
    if (!read_memory_operand(cpu, insn, operand(insn, 1), descriptor.data(), sizeof descriptor)) return Step::Fault;
    uint64_t const type = read_register(cpu, operand(insn, 0).reg.value);
    // Without CR4.PCIDE there is PCID 0 alone.
    if (type > 3 || descriptor[0] >> 12) return fault(cpu, Vector::GP, 0);
    if (type < 2 && (descriptor[0] & 0xFFF) != 0) return fault(cpu, Vector::GP, 0);
    if (type == 0 && cpu.mode.long_mode && !is_canonical(descriptor[1])) return fault(cpu, Vector::GP, 0);
    switch (type) {
    case 0: flush_tlb_page(cpu, descriptor[1]); break;
    case 2: flush_tlb_all(cpu); break;
    default: flush_tlb_non_global(cpu); break;
    }
    return done_leave(cpu, insn);
}

Step set_ac(Cpu& cpu, Insn const& insn) noexcept {
    if (cpu.mode.cpl != 0) return fault(cpu, Vector::UD);
    if (mnemonic(insn) == ZYDIS_MNEMONIC_STAC) {
        cpu.rflags |= k_ac;
    } else {
        cpu.rflags &= ~k_ac;
        drop_user_pages_from_supervisor_set(cpu);
    }
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
