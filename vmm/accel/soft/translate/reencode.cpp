#include "vmm/accel/soft/translate/reencode.hpp"

namespace coffer::vmm::soft {

namespace {

bool vector_isa(ZydisDecodedInstruction const& insn) {
    switch (insn.meta.isa_ext) {
    case ZYDIS_ISA_EXT_MMX:
    case ZYDIS_ISA_EXT_SSE:
    case ZYDIS_ISA_EXT_SSE2:
    case ZYDIS_ISA_EXT_SSE3:
    case ZYDIS_ISA_EXT_SSSE3:
    case ZYDIS_ISA_EXT_SSE4:
    case ZYDIS_ISA_EXT_AES:
    case ZYDIS_ISA_EXT_PCLMULQDQ:
    case ZYDIS_ISA_EXT_SHA: return insn.mnemonic != ZYDIS_MNEMONIC_POPCNT && insn.mnemonic != ZYDIS_MNEMONIC_CRC32;
    default: return false;
    }
}

// The parts of an encoding that are kept.
struct Encoding {
    bool lock = false;
    bool size66 = false;
    uint8_t repeat = 0; // mandatory F2 or F3
    bool w = false;
    uint8_t map = 0; // 0, 1: 0F, 2: 0F38, 3: 0F3A
    uint8_t opcode = 0;
    bool has_modrm = false;
    uint8_t mod = 0, reg = 0, rm = 0; // low three bits
    uint8_t rex_r = 0, rex_b = 0;     // as the guest has them
    uint8_t const* tail = nullptr;    // immediates
    uint8_t tail_size = 0;
};

Encoding parse(Decoded const& d) {
    Encoding enc;
    ZydisDecodedInstruction const& insn = d.insn;
    bool mandatory66 = false, has66 = false;
    for (unsigned i = 0; i < insn.raw.prefix_count; ++i) {
        uint8_t value = insn.raw.prefixes[i].value;
        bool mandatory = insn.raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY;
        if (value == 0x66) {
            has66 = true;
            mandatory66 |= mandatory;
        }
        if ((value == 0xF2 || value == 0xF3) && mandatory) enc.repeat = value;
    }
    enc.lock = (insn.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
    // 64-bit and 32-bit code share the host's default operand size; 16-bit code has the opposite one.
    if (d.code_bits != 16 || vector_isa(insn))
        enc.size66 = has66;
    else
        enc.size66 = mandatory66 || (insn.operand_width == 16 && insn.mnemonic != ZYDIS_MNEMONIC_CLFLUSH);
    if (insn.attributes & ZYDIS_ATTRIB_HAS_REX) {
        enc.w = insn.raw.rex.W != 0;
        enc.rex_r = insn.raw.rex.R;
        enc.rex_b = insn.raw.rex.B;
    }
    switch (insn.opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT: enc.map = 0; break;
    case ZYDIS_OPCODE_MAP_0F: enc.map = 1; break;
    case ZYDIS_OPCODE_MAP_0F38: enc.map = 2; break;
    case ZYDIS_OPCODE_MAP_0F3A: enc.map = 3; break;
    default: COFFER_ASSERT(false);
    }
    enc.opcode = insn.opcode;
    enc.has_modrm = (insn.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0;
    if (enc.has_modrm) {
        enc.mod = insn.raw.modrm.mod;
        enc.reg = insn.raw.modrm.reg;
        enc.rm = insn.raw.modrm.rm;
    }
    if (insn.raw.imm[0].size != 0) {
        enc.tail = d.bytes.data() + insn.raw.imm[0].offset;
        enc.tail_size = static_cast<uint8_t>(insn.length - insn.raw.imm[0].offset);
    }
    return enc;
}

struct Fields {
    uint8_t reg = 0, rm = 0; // four bits
    bool memory = false;
    bool force_rex = false;
};

void emit_encoding(Emitter& e, Encoding const& enc, Fields const& f) {
    if (enc.lock) e.byte(0xF0);
    if (enc.size66) e.byte(0x66);
    if (enc.repeat) e.byte(enc.repeat);
    e.rex(enc.w, f.reg >> 3, 0, f.rm >> 3, f.force_rex);
    if (enc.map != 0) e.byte(0x0F);
    if (enc.map == 2) e.byte(0x38);
    if (enc.map == 3) e.byte(0x3A);
    if (enc.has_modrm) {
        e.byte(enc.opcode);
        e.byte(static_cast<uint8_t>((f.memory ? 0 : 0xC0) | (f.reg & 7) << 3 | (f.rm & 7)));
    } else {
        e.byte(enc.opcode);
    }
    if (enc.tail_size) e.raw(enc.tail, enc.tail_size);
}

// One general register that the encoding names.
struct NamedRegister {
    bool present = false;
    bool high_byte = false;
    bool written = false;
    unsigned guest = 0;
    uint8_t code = 0; // four bits, as encoded for the host
    bool needs_rex = false;
    Host scratch = Host::rsp; // r14 or r15 where the guest's lives in memory, else rsp
};

NamedRegister name_register(ZydisDecodedOperand const& operand) {
    NamedRegister named;
    ZydisRegister reg = operand.reg.value;
    if (!is_gpr(reg)) return named;
    named.present = true;
    named.guest = gpr_number(reg);
    named.high_byte = is_high_byte(reg);
    named.written = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    if (named.high_byte) {
        named.code = static_cast<uint8_t>(4 + named.guest);
        return named;
    }
    named.needs_rex = gpr_bytes(reg) == 1 && named.guest >= 4;
    if (auto host = host_of(named.guest)) named.code = static_cast<uint8_t>(*host);
    return named;
}

void emit_lea(Emitter& e, Decoded const& d, uint64_t next_rip) {
    unsigned guest = gpr_number(d.operands[0].reg.value);
    ZydisDecodedOperandMem const& mem = d.operands[1].mem;
    auto host = host_of(guest);
    switch (gpr_bytes(d.operands[0].reg.value)) {
    case 8: emit_offset(e, mem, d.insn.address_width, host.value_or(Host::r14), next_rip); break;
    case 4: emit_offset(e, mem, d.insn.address_width == 16 ? 16 : 32, host.value_or(Host::r14), next_rip); break;
    default:
        emit_offset(e, mem, d.insn.address_width, Host::r14, next_rip);
        e.byte(0x66);
        if (host)
            e.reg_reg(0x8B, *host, Host::r14, false);
        else
            e.state(0x89, Host::r14, gpr_slot(guest), false);
        return;
    }
    if (!host) e.store(gpr_slot(guest), Host::r14);
}

// r15 = index & (bits - 1), flags kept: BT and its kin change CF alone.
void emit_mask_index(Emitter& e, Decoded const& d, unsigned bits, int32_t spare) {
    unsigned guest = gpr_number(d.operands[1].reg.value);
    e.store(spare, Host::rax);
    e.bytes(0x9F, 0x0F, 0x90, 0xC0); // lahf; seto al
    e.move(Host::r15, Host::rax);
    e.load(Host::rax, spare);
    e.store(spare, Host::r15); // the flags
    emit_get(e, Host::r15, guest);
    e.alu_imm(4, Host::r15, static_cast<int32_t>(bits - 1), false);
    e.store(spare + 8, Host::rax);
    e.load(Host::rax, spare);
    e.bytes(0x04, 0x7F, 0x9E); // add al, 0x7F; sahf
    e.load(Host::rax, spare + 8);
}

void emit_bit_string(Emitter& e, Decoded const& d, Encoding enc, int32_t spare) {
    unsigned bits = gpr_bytes(d.operands[1].reg.value) * 8;
    emit_mask_index(e, d, bits, spare);
    emit_encoding(e, enc, Fields{.reg = 15, .rm = 14, .memory = true, .force_rex = false});
}

void emit_mask_move(Emitter& e, Encoding const& enc, Fields const& f, int32_t spare) {
    e.store(spare, Host::rdi);
    e.move(Host::rdi, Host::r14);
    emit_encoding(e, enc, f);
    e.load(Host::rdi, spare);
}

// AH-BH beside a register or address that needs REX: RSI stands in for the latter.
void emit_through_rsi(Emitter& e, Encoding const& enc, Fields f, NamedRegister& conflicting, bool in_reg, bool memory,
                      int32_t spare) {
    e.store(spare, Host::rsi);
    if (memory) {
        e.move(Host::rsi, Host::r14);
        f.rm = 6;
        emit_encoding(e, enc, f);
        e.load(Host::rsi, spare);
        return;
    }
    e.move(Host::rsi, static_cast<Host>(conflicting.code));
    (in_reg ? f.reg : f.rm) = 6;
    f.force_rex = false;
    emit_encoding(e, enc, f);
    if (conflicting.written) e.move(static_cast<Host>(conflicting.code), Host::rsi);
    e.load(Host::rsi, spare);
}

} // namespace

void emit_get(Emitter& e, Host to, unsigned guest) {
    if (auto host = host_of(guest))
        e.move(to, *host);
    else
        e.load(to, gpr_slot(guest));
}

void emit_put(Emitter& e, unsigned guest, Host from) {
    if (auto host = host_of(guest))
        e.move(*host, from);
    else
        e.store(gpr_slot(guest), from);
}

void emit_offset(Emitter& e, ZydisDecodedOperandMem const& mem, unsigned address_width, Host to, uint64_t next_rip) {
    bool wide = address_width == 64;
    auto truncate = [&](uint64_t value) {
        return wide ? value : address_width == 32 ? value & 0xFFFF'FFFF : value & 0xFFFF;
    };
    uint64_t disp = static_cast<uint64_t>(mem.disp.value);
    bool has_base = mem.base != ZYDIS_REGISTER_NONE, has_index = mem.index != ZYDIS_REGISTER_NONE;
    if (mem.base == ZYDIS_REGISTER_RIP || mem.base == ZYDIS_REGISTER_EIP) {
        e.move_imm(to, truncate(disp + next_rip));
        return;
    }
    if (!has_base && !has_index) {
        e.move_imm(to, truncate(disp));
        return;
    }
    int32_t disp32 = static_cast<int32_t>(mem.disp.value);
    Host base = Host::r14, index = Host::r15;
    if (has_base) {
        unsigned guest = gpr_number(mem.base);
        if (auto host = host_of(guest))
            base = *host;
        else
            e.load(Host::r14, gpr_slot(guest));
    }
    if (has_index) {
        unsigned guest = gpr_number(mem.index);
        if (gpr_bytes(mem.index) == 1)
            e.bytes(0x44, 0x0F, 0xB6, 0xF8); // XLAT: movzx r15d, al
        else if (auto host = host_of(guest))
            index = *host;
        else
            e.load(Host::r15, gpr_slot(guest));
    }
    uint8_t scale = mem.scale == 8 ? 3 : mem.scale == 4 ? 2 : mem.scale == 2 ? 1 : 0;
    if (has_base && has_index)
        e.lea_indexed(to, base, index, scale, disp32, wide);
    else if (has_index)
        e.lea_scaled(to, index, scale, disp32, wide);
    else if (disp32 == 0)
        e.move(to, base, wide);
    else
        e.lea(to, base, disp32, wide);
    if (address_width == 16) {
        e.rex(false, bit3(to), 0, bit3(to));
        e.bytes(0x0F, 0xB7, 0xC0 | low3(to) << 3 | low3(to));
    }
}

void emit_bit_string_reach(Emitter& e, Decoded const& d) {
    ZydisRegister reg = d.operands[1].reg.value;
    emit_get(e, Host::r15, gpr_number(reg));
    switch (gpr_bytes(reg)) {
    case 2:
        e.bytes(0x4D, 0x0F, 0xBF, 0xFF); // movsx r15, r15w
        e.shift_imm(7, Host::r15, 4);
        e.lea_indexed(Host::r14, Host::r14, Host::r15, 1, 0);
        break;
    case 4:
        e.bytes(0x4D, 0x63, 0xFF); // movsxd r15, r15d
        e.shift_imm(7, Host::r15, 5);
        e.lea_indexed(Host::r14, Host::r14, Host::r15, 2, 0);
        break;
    default:
        e.shift_imm(7, Host::r15, 6);
        e.lea_indexed(Host::r14, Host::r14, Host::r15, 3, 0);
        break;
    }
    if (d.insn.address_width == 32) e.move(Host::r14, Host::r14, false);
    if (d.insn.address_width == 16) e.bytes(0x45, 0x0F, 0xB7, 0xF6); // movzx r14d, r14w
}

void emit_plain(Emitter& e, Decoded const& d, uint64_t next_rip, int32_t spare) {
    ZydisDecodedInstruction const& insn = d.insn;
    switch (insn.mnemonic) {
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_PREFETCH:
    case ZYDIS_MNEMONIC_PREFETCHNTA:
    case ZYDIS_MNEMONIC_PREFETCHT0:
    case ZYDIS_MNEMONIC_PREFETCHT1:
    case ZYDIS_MNEMONIC_PREFETCHT2:
    case ZYDIS_MNEMONIC_PREFETCHW:
    case ZYDIS_MNEMONIC_PREFETCHWT1: return;
    case ZYDIS_MNEMONIC_PAUSE: e.bytes(0xF3, 0x90); return;
    case ZYDIS_MNEMONIC_LEA: emit_lea(e, d, next_rip); return;
    case ZYDIS_MNEMONIC_XLAT: e.bytes(0x41, 0x8A, 0x06); return; // mov al, [r14]
    default: break;
    }
    Encoding enc = parse(d);
    if (d.bit_string) {
        emit_bit_string(e, d, enc, spare);
        return;
    }
    if (insn.mnemonic == ZYDIS_MNEMONIC_BSF || insn.mnemonic == ZYDIS_MNEMONIC_BSR) enc.repeat = 0;
    Fields fields{.reg = static_cast<uint8_t>(enc.reg | enc.rex_r << 3),
                  .rm = static_cast<uint8_t>(enc.rm | enc.rex_b << 3),
                  .memory = false,
                  .force_rex = false};
    if (insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU) {
        emit_mask_move(e, enc, fields, spare);
        return;
    }
    NamedRegister in_reg, in_rm;
    for (unsigned i = 0; i < insn.operand_count; ++i) {
        ZydisDecodedOperand const& operand = d.operands[i];
        if (operand.type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
        if (operand.encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) in_reg = name_register(operand);
        if (operand.encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM || operand.encoding == ZYDIS_OPERAND_ENCODING_OPCODE)
            in_rm = name_register(operand);
    }
    // Encodings that mean something else, or nothing, in 64-bit code.
    if (enc.map == 0 && d.code_bits != 64 && enc.opcode >= 0x40 && enc.opcode <= 0x4F) {
        enc.has_modrm = true;
        fields.reg = enc.opcode >= 0x48 ? 1 : 0;
        enc.opcode = 0xFF;
    } else if (enc.map == 0 && enc.opcode == 0x82) {
        enc.opcode = 0x80;
    } else if (enc.map == 0 && enc.opcode >= 0xA0 && enc.opcode <= 0xA3) {
        constexpr std::array<uint8_t, 4> k_with_modrm{0x8A, 0x8B, 0x88, 0x89};
        enc.opcode = k_with_modrm[enc.opcode - 0xA0U];
        enc.has_modrm = true;
        fields.reg = 0;
        enc.tail_size = 0;
    }
    bool memory = d.memory.present;
    if (memory) {
        fields.memory = true;
        fields.rm = 14;
    }
    // Registers that live in memory come through scratch: r14 is taken where it is the address.
    Host next_scratch = memory ? Host::r15 : Host::r14;
    auto bring_in = [&](NamedRegister& named, NamedRegister const* same) {
        if (!named.present || named.high_byte || host_of(named.guest)) return;
        if (same && same->present && !same->high_byte && same->scratch != Host::rsp && same->guest == named.guest) {
            named.scratch = same->scratch;
        } else {
            named.scratch = next_scratch;
            next_scratch = Host::r15;
            e.load(named.scratch, gpr_slot(named.guest));
        }
        named.code = static_cast<uint8_t>(named.scratch);
    };
    bring_in(in_rm, nullptr);
    bring_in(in_reg, &in_rm);
    if (in_reg.present) {
        fields.reg = in_reg.code;
        fields.force_rex |= in_reg.needs_rex;
    }
    if (in_rm.present) {
        fields.force_rex |= in_rm.needs_rex;
        if (enc.has_modrm) {
            fields.rm = in_rm.code;
        } else {
            fields.rm = in_rm.code;
            enc.opcode = static_cast<uint8_t>((enc.opcode & 0xF8) | (in_rm.code & 7));
        }
    }
    bool high = in_reg.high_byte || in_rm.high_byte;
    if (!enc.has_modrm && !in_rm.present) fields.rm = 0;
    if (high && (memory || fields.reg >= 8 || fields.rm >= 8))
        emit_through_rsi(e, enc, fields, in_reg.high_byte ? in_rm : in_reg, !in_reg.high_byte, memory, spare);
    else
        emit_encoding(e, enc, fields);

    if (in_rm.scratch != Host::rsp && in_rm.written) e.store(gpr_slot(in_rm.guest), in_rm.scratch);
    if (in_reg.scratch != Host::rsp && in_reg.written && (in_reg.scratch != in_rm.scratch || !in_rm.written))
        e.store(gpr_slot(in_reg.guest), in_reg.scratch);
}

} // namespace coffer::vmm::soft
