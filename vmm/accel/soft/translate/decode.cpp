#include "vmm/accel/soft/translate/decode.hpp"

#include <cstring>

#include "base/result.hpp"

namespace coffer::vmm::soft {

namespace {

struct Decoders {
    ZydisDecoder bits16, bits32, bits64;

    static ZydisDecoder make(ZydisMachineMode mode, ZydisStackWidth width) {
        ZydisDecoder decoder;
        COFFER_ASSERT(ZYAN_SUCCESS(ZydisDecoderInit(&decoder, mode, width)));
        for (auto off : {ZYDIS_DECODER_MODE_MPX, ZYDIS_DECODER_MODE_CET, ZYDIS_DECODER_MODE_LZCNT,
                         ZYDIS_DECODER_MODE_TZCNT, ZYDIS_DECODER_MODE_CLDEMOTE})
            COFFER_ASSERT(ZYAN_SUCCESS(ZydisDecoderEnableMode(&decoder, off, ZYAN_FALSE)));
        return decoder;
    }
    Decoders()
        : bits16(make(ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16)),
          bits32(make(ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)),
          bits64(make(ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)) {}
};

ZydisDecoder const& decoder_for(unsigned code_bits) {
    static Decoders const decoders;
    return code_bits == 64 ? decoders.bits64 : code_bits == 32 ? decoders.bits32 : decoders.bits16;
}

} // namespace

DecodeStatus decode(unsigned code_bits, std::span<uint8_t const> bytes, Decoded& to) noexcept {
    if (bytes.size() > to.bytes.size()) bytes = bytes.first(to.bytes.size());
    ZydisDecoder const& decoder = decoder_for(code_bits);
    ZydisDecoderContext context;
    ZyanStatus status = ZydisDecoderDecodeInstruction(&decoder, &context, bytes.data(), bytes.size(), &to.insn);
    if (ZYAN_SUCCESS(status))
        status = ZydisDecoderDecodeOperands(&decoder, &context, &to.insn, to.operands.data(), to.insn.operand_count);
    if (status == ZYDIS_STATUS_NO_MORE_DATA)
        return bytes.size() == to.bytes.size() ? DecodeStatus::TooLong : DecodeStatus::NeedMore;
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) return DecodeStatus::TooLong;
    if (!ZYAN_SUCCESS(status)) return DecodeStatus::Undefined;
    to.bytes.fill(0);
    std::memcpy(to.bytes.data(), bytes.data(), to.insn.length);
    to.code_bits = static_cast<uint8_t>(code_bits);
    classify(to);
    return DecodeStatus::Ok;
}

bool is_gpr(ZydisRegister reg) noexcept {
    return reg >= ZYDIS_REGISTER_AL && reg <= ZYDIS_REGISTER_R15;
}
bool is_high_byte(ZydisRegister reg) noexcept {
    return reg >= ZYDIS_REGISTER_AH && reg <= ZYDIS_REGISTER_BH;
}

unsigned gpr_number(ZydisRegister reg) noexcept {
    if (reg >= ZYDIS_REGISTER_RAX) return static_cast<unsigned>(reg - ZYDIS_REGISTER_RAX);
    if (reg >= ZYDIS_REGISTER_EAX) return static_cast<unsigned>(reg - ZYDIS_REGISTER_EAX);
    if (reg >= ZYDIS_REGISTER_AX) return static_cast<unsigned>(reg - ZYDIS_REGISTER_AX);
    if (reg >= ZYDIS_REGISTER_SPL) return static_cast<unsigned>(reg - ZYDIS_REGISTER_SPL) + 4;
    if (reg >= ZYDIS_REGISTER_AH) return static_cast<unsigned>(reg - ZYDIS_REGISTER_AH);
    return static_cast<unsigned>(reg - ZYDIS_REGISTER_AL);
}

unsigned gpr_bytes(ZydisRegister reg) noexcept {
    if (reg >= ZYDIS_REGISTER_RAX) return 8;
    if (reg >= ZYDIS_REGISTER_EAX) return 4;
    if (reg >= ZYDIS_REGISTER_AX) return 2;
    return 1;
}

uint64_t effective_offset(Decoded const& decoded, std::array<uint64_t, 16> const& gpr, uint64_t next_rip) noexcept {
    ZydisDecodedOperandMem const& mem = decoded.operands[decoded.memory.operand].mem;
    auto value_of = [&](ZydisRegister reg) -> uint64_t {
        uint64_t value = gpr[gpr_number(reg)];
        switch (gpr_bytes(reg)) {
        case 1: return value & 0xFF; // XLAT's AL
        case 2: return value & 0xFFFF;
        case 4: return value & 0xFFFF'FFFF;
        default: return value;
        }
    };
    uint64_t offset = static_cast<uint64_t>(mem.disp.value);
    if (mem.base == ZYDIS_REGISTER_RIP || mem.base == ZYDIS_REGISTER_EIP)
        offset += next_rip;
    else if (mem.base != ZYDIS_REGISTER_NONE)
        offset += value_of(mem.base);
    if (mem.index != ZYDIS_REGISTER_NONE) offset += value_of(mem.index) * (mem.scale ? mem.scale : 1);
    if (decoded.bit_string) {
        ZydisRegister index_register = decoded.operands[1].reg.value;
        uint64_t index = gpr[gpr_number(index_register)];
        switch (gpr_bytes(index_register)) {
        case 2: offset += static_cast<uint64_t>((static_cast<int64_t>(static_cast<int16_t>(index)) >> 4) * 2); break;
        case 4: offset += static_cast<uint64_t>((static_cast<int64_t>(static_cast<int32_t>(index)) >> 5) * 4); break;
        default: offset += static_cast<uint64_t>((static_cast<int64_t>(index) >> 6) * 8); break;
        }
    }
    switch (decoded.insn.address_width) {
    case 16: return offset & 0xFFFF;
    case 32: return offset & 0xFFFF'FFFF;
    default: return offset;
    }
}

} // namespace coffer::vmm::soft
