// Instructions of the 16- and 32-bit modes that a 64-bit host has no encoding for, and XLAT. Intel SDM vol. 2.
#include "vmm/accel/soft/system/handlers.hpp"

namespace coffer::vmm::soft {

namespace {

void set_result_flags(Cpu& cpu, uint8_t value, bool cf, bool af) noexcept {
    uint64_t flags = 0;
    if (cf) flags |= k_cf;
    if (af) flags |= k_af;
    if (value == 0) flags |= k_zf;
    if (value & 0x80) flags |= k_sf;
    if (!(__builtin_popcount(value) & 1)) flags |= k_pf;
    cpu.rflags = (cpu.rflags & ~k_arithmetic_flags) | flags;
}

void adjust_packed(Cpu& cpu, bool subtract) noexcept {
    auto const old = static_cast<uint8_t>(cpu.reg(Gpr::Rax));
    bool cf = cpu.rflags & k_cf, af = cpu.rflags & k_af;
    unsigned value = old;
    bool const low = (old & 0xF) > 9 || af;
    bool const high = old > 0x99 || cf;
    if (low) value = subtract ? value - 6 : value + 6;
    if (high) value = subtract ? value - 0x60 : value + 0x60;
    bool const borrow = subtract && low && old < 6;
    cf = high || (low && (cf || borrow));
    write_gpr(cpu, Gpr::Rax, 8, value);
    set_result_flags(cpu, static_cast<uint8_t>(value), cf, low);
}

void adjust_unpacked(Cpu& cpu, bool subtract) noexcept {
    auto ax = static_cast<uint16_t>(cpu.reg(Gpr::Rax));
    bool const adjust = (ax & 0xF) > 9 || (cpu.rflags & k_af);
    if (adjust) ax = static_cast<uint16_t>(subtract ? ax - 0x106 : ax + 0x106);
    ax &= 0xFF0F;
    write_gpr(cpu, Gpr::Rax, 16, ax);
    set_result_flags(cpu, static_cast<uint8_t>(ax), adjust, adjust);
}

} // namespace

Step decimal_adjust(Cpu& cpu, Insn const& insn) noexcept {
    auto const al = static_cast<uint8_t>(cpu.reg(Gpr::Rax));
    auto const ah = static_cast<uint8_t>(cpu.reg(Gpr::Rax) >> 8);
    switch (mnemonic(insn)) {
    case ZYDIS_MNEMONIC_DAA: adjust_packed(cpu, false); break;
    case ZYDIS_MNEMONIC_DAS: adjust_packed(cpu, true); break;
    case ZYDIS_MNEMONIC_AAA: adjust_unpacked(cpu, false); break;
    case ZYDIS_MNEMONIC_AAS: adjust_unpacked(cpu, true); break;
    case ZYDIS_MNEMONIC_AAM: {
        auto const base = static_cast<uint8_t>(operand(insn, 0).imm.value.u);
        if (base == 0) return fault(cpu, Vector::DE);
        auto const low = static_cast<uint8_t>(al % base);
        write_gpr(cpu, Gpr::Rax, 16, static_cast<uint64_t>(al / base) << 8 | low);
        set_result_flags(cpu, low, false, false);
        break;
    }
    default: {
        auto const base = static_cast<uint8_t>(operand(insn, 0).imm.value.u);
        auto const low = static_cast<uint8_t>(al + ah * base);
        write_gpr(cpu, Gpr::Rax, 16, low);
        set_result_flags(cpu, low, false, false);
        break;
    }
    }
    return done(cpu, insn);
}

Step salc(Cpu& cpu, Insn const& insn) noexcept {
    write_gpr(cpu, Gpr::Rax, 8, (cpu.rflags & k_cf) ? 0xFF : 0);
    return done(cpu, insn);
}

Step bound(Cpu& cpu, Insn const& insn) noexcept {
    unsigned const bits = insn.decoded->operand_width == 16 ? 16 : 32;
    std::array<uint8_t, 8> raw{};
    if (!read_memory_operand(cpu, insn, operand(insn, 1), raw.data(), bits / 4)) return Step::Fault;
    uint64_t limits = 0;
    for (size_t i = raw.size(); i-- > 0;) limits = limits << 8 | raw[i];
    auto const index = static_cast<int64_t>(sign_extend(read_register(cpu, operand(insn, 0).reg.value), bits));
    auto const lower = static_cast<int64_t>(sign_extend(limits & mask_bits(bits), bits));
    auto const upper = static_cast<int64_t>(sign_extend((limits >> bits) & mask_bits(bits), bits));
    if (index < lower || index > upper) return fault(cpu, Vector::BR);
    return done(cpu, insn);
}

Step xlat(Cpu& cpu, Insn const& insn) noexcept {
    SegmentName segment = SegmentName::Ds;
    for (size_t i = 0; i < insn.decoded->operand_count; ++i) {
        if (is_memory(operand(insn, i))) segment = segment_name(operand(insn, i).mem.segment);
    }
    unsigned const width = insn.decoded->address_width;
    uint64_t const offset = (read_gpr(cpu, Gpr::Rbx, width) + (cpu.reg(Gpr::Rax) & 0xFF)) & mask_bits(width);
    uint64_t linear = 0;
    uint8_t value = 0;
    if (!segment_to_linear(cpu, segment, offset, 1, Access::Read, linear)) return Step::Fault;
    if (!memory_read(cpu, linear, &value, 1)) return Step::Fault;
    write_gpr(cpu, Gpr::Rax, 8, value);
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
