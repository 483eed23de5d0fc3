// The allow-list: which instructions, with which operands, may run on the host CPU. What is not listed is System (and
// #UD where system/ does not know it) or Undefined; what Zydis learns in a later version is neither Plain nor Branch.
#include <bitset>
#include <initializer_list>

#include "vmm/accel/soft/translate/decode.hpp"

namespace coffer::vmm::soft {

namespace {

using MnemonicSet = std::bitset<ZYDIS_MNEMONIC_MAX_VALUE + 1>;

MnemonicSet make_set(std::initializer_list<ZydisMnemonic> list) {
    MnemonicSet set;
    for (ZydisMnemonic mnemonic : list) set.set(mnemonic);
    return set;
}

#define M(name) ZYDIS_MNEMONIC_##name

MnemonicSet const& integer_set() {
    static MnemonicSet const set = make_set({
        M(ADC),        M(ADD),       M(AND),         M(BSF),      M(BSR),         M(BSWAP),      M(BT),
        M(BTC),        M(BTR),       M(BTS),         M(CBW),      M(CDQ),         M(CDQE),       M(CLC),
        M(CLD),        M(CMC),       M(CMP),         M(CMPXCHG),  M(CMPXCHG16B),  M(CMPXCHG8B),  M(CQO),
        M(CWD),        M(CWDE),      M(DEC),         M(DIV),      M(IDIV),        M(IMUL),       M(INC),
        M(LAHF),       M(LEA),       M(MOV),         M(MOVSX),    M(MOVSXD),      M(MOVZX),      M(MUL),
        M(NEG),        M(NOP),       M(NOT),         M(OR),       M(PAUSE),       M(RCL),        M(RCR),
        M(ROL),        M(ROR),       M(SAHF),        M(SAR),      M(SBB),         M(SHL),        M(SHLD),
        M(SHR),        M(SHRD),      M(STC),         M(STD),      M(SUB),         M(TEST),       M(XADD),
        M(XCHG),       M(XLAT),      M(XOR),         M(CMOVB),    M(CMOVBE),      M(CMOVL),      M(CMOVLE),
        M(CMOVNB),     M(CMOVNBE),   M(CMOVNL),      M(CMOVNLE),  M(CMOVNO),      M(CMOVNP),     M(CMOVNS),
        M(CMOVNZ),     M(CMOVO),     M(CMOVP),       M(CMOVS),    M(CMOVZ),       M(SETB),       M(SETBE),
        M(SETL),       M(SETLE),     M(SETNB),       M(SETNBE),   M(SETNL),       M(SETNLE),     M(SETNO),
        M(SETNP),      M(SETNS),     M(SETNZ),       M(SETO),     M(SETP),        M(SETS),       M(SETZ),
        M(LFENCE),     M(MFENCE),    M(SFENCE),      M(PREFETCH), M(PREFETCHNTA), M(PREFETCHT0), M(PREFETCHT1),
        M(PREFETCHT2), M(PREFETCHW), M(PREFETCHWT1), M(CLFLUSH),  M(MOVNTI),      M(MOVBE),      M(POPCNT),
        M(CRC32),      M(RDRAND),    M(RDSEED),
    });
    return set;
}

MnemonicSet const& x87_set() {
    static MnemonicSet const set = make_set({
        M(F2XM1),   M(FABS),    M(FADD),    M(FADDP),        M(FBLD),    M(FBSTP),         M(FCHS),          M(FCMOVB),
        M(FCMOVBE), M(FCMOVE),  M(FCMOVNB), M(FCMOVNBE),     M(FCMOVNE), M(FCMOVNU),       M(FCMOVU),        M(FCOM),
        M(FCOMI),   M(FCOMIP),  M(FCOMP),   M(FCOMPP),       M(FCOS),    M(FDECSTP),       M(FDISI8087_NOP), M(FDIV),
        M(FDIVP),   M(FDIVR),   M(FDIVRP),  M(FENI8087_NOP), M(FFREE),   M(FFREEP),        M(FIADD),         M(FICOM),
        M(FICOMP),  M(FIDIV),   M(FIDIVR),  M(FILD),         M(FIMUL),   M(FINCSTP),       M(FIST),          M(FISTP),
        M(FISTTP),  M(FISUB),   M(FISUBR),  M(FLD),          M(FLD1),    M(FLDCW),         M(FLDENV),        M(FLDL2E),
        M(FLDL2T),  M(FLDLG2),  M(FLDLN2),  M(FLDPI),        M(FLDZ),    M(FMUL),          M(FMULP),         M(FNCLEX),
        M(FNINIT),  M(FNOP),    M(FNSAVE),  M(FNSTCW),       M(FNSTENV), M(FNSTSW),        M(FPATAN),        M(FPREM),
        M(FPREM1),  M(FPTAN),   M(FRNDINT), M(FRSTOR),       M(FSCALE),  M(FSETPM287_NOP), M(FSIN),          M(FSINCOS),
        M(FSQRT),   M(FST),     M(FSTP),    M(FSTPNCE),      M(FSUB),    M(FSUBP),         M(FSUBR),         M(FSUBRP),
        M(FTST),    M(FUCOM),   M(FUCOMI),  M(FUCOMIP),      M(FUCOMP),  M(FUCOMPP),       M(FWAIT),         M(FXAM),
        M(FXCH),    M(FXTRACT), M(FYL2X),   M(FYL2XP1),      M(EMMS),
    });
    return set;
}

MnemonicSet const& vector_set() {
    static MnemonicSet const set = make_set({
        M(ADDPD),      M(ADDPS),       M(ADDSD),      M(ADDSS),      M(ADDSUBPD),   M(ADDSUBPS),
        M(AESDEC),     M(AESDECLAST),  M(AESENC),     M(AESENCLAST), M(AESIMC),     M(AESKEYGENASSIST),
        M(ANDNPD),     M(ANDNPS),      M(ANDPD),      M(ANDPS),      M(BLENDPD),    M(BLENDPS),
        M(BLENDVPD),   M(BLENDVPS),    M(CMPPD),      M(CMPPS),      M(CMPSD),      M(CMPSS),
        M(COMISD),     M(COMISS),      M(CVTDQ2PD),   M(CVTDQ2PS),   M(CVTPD2DQ),   M(CVTPD2PI),
        M(CVTPD2PS),   M(CVTPI2PD),    M(CVTPI2PS),   M(CVTPS2DQ),   M(CVTPS2PD),   M(CVTPS2PI),
        M(CVTSD2SI),   M(CVTSD2SS),    M(CVTSI2SD),   M(CVTSI2SS),   M(CVTSS2SD),   M(CVTSS2SI),
        M(CVTTPD2DQ),  M(CVTTPD2PI),   M(CVTTPS2DQ),  M(CVTTPS2PI),  M(CVTTSD2SI),  M(CVTTSS2SI),
        M(DIVPD),      M(DIVPS),       M(DIVSD),      M(DIVSS),      M(DPPD),       M(DPPS),
        M(EXTRACTPS),  M(HADDPD),      M(HADDPS),     M(HSUBPD),     M(HSUBPS),     M(INSERTPS),
        M(LDDQU),      M(LDMXCSR),     M(MAXPD),      M(MAXPS),      M(MAXSD),      M(MAXSS),
        M(MINPD),      M(MINPS),       M(MINSD),      M(MINSS),      M(MOVAPD),     M(MOVAPS),
        M(MOVD),       M(MOVDDUP),     M(MOVDQ2Q),    M(MOVDQA),     M(MOVDQU),     M(MOVHLPS),
        M(MOVHPD),     M(MOVHPS),      M(MOVLHPS),    M(MOVLPD),     M(MOVLPS),     M(MOVMSKPD),
        M(MOVMSKPS),   M(MOVNTDQ),     M(MOVNTDQA),   M(MOVNTPD),    M(MOVNTPS),    M(MOVNTQ),
        M(MOVQ),       M(MOVQ2DQ),     M(MOVSD),      M(MOVSHDUP),   M(MOVSLDUP),   M(MOVSS),
        M(MOVUPD),     M(MOVUPS),      M(MPSADBW),    M(MULPD),      M(MULPS),      M(MULSD),
        M(MULSS),      M(ORPD),        M(ORPS),       M(PABSB),      M(PABSD),      M(PABSW),
        M(PACKSSDW),   M(PACKSSWB),    M(PACKUSDW),   M(PACKUSWB),   M(PADDB),      M(PADDD),
        M(PADDQ),      M(PADDSB),      M(PADDSW),     M(PADDUSB),    M(PADDUSW),    M(PADDW),
        M(PALIGNR),    M(PAND),        M(PANDN),      M(PAVGB),      M(PAVGW),      M(PBLENDVB),
        M(PBLENDW),    M(PCLMULQDQ),   M(PCMPEQB),    M(PCMPEQD),    M(PCMPEQQ),    M(PCMPEQW),
        M(PCMPESTRI),  M(PCMPESTRM),   M(PCMPGTB),    M(PCMPGTD),    M(PCMPGTQ),    M(PCMPGTW),
        M(PCMPISTRI),  M(PCMPISTRM),   M(PEXTRB),     M(PEXTRD),     M(PEXTRQ),     M(PEXTRW),
        M(PHADDD),     M(PHADDSW),     M(PHADDW),     M(PHMINPOSUW), M(PHSUBD),     M(PHSUBSW),
        M(PHSUBW),     M(PINSRB),      M(PINSRD),     M(PINSRQ),     M(PINSRW),     M(PMADDUBSW),
        M(PMADDWD),    M(PMAXSB),      M(PMAXSD),     M(PMAXSW),     M(PMAXUB),     M(PMAXUD),
        M(PMAXUW),     M(PMINSB),      M(PMINSD),     M(PMINSW),     M(PMINUB),     M(PMINUD),
        M(PMINUW),     M(PMOVMSKB),    M(PMOVSXBD),   M(PMOVSXBQ),   M(PMOVSXBW),   M(PMOVSXDQ),
        M(PMOVSXWD),   M(PMOVSXWQ),    M(PMOVZXBD),   M(PMOVZXBQ),   M(PMOVZXBW),   M(PMOVZXDQ),
        M(PMOVZXWD),   M(PMOVZXWQ),    M(PMULDQ),     M(PMULHRSW),   M(PMULHUW),    M(PMULHW),
        M(PMULLD),     M(PMULLW),      M(PMULUDQ),    M(POR),        M(PSADBW),     M(PSHUFB),
        M(PSHUFD),     M(PSHUFHW),     M(PSHUFLW),    M(PSHUFW),     M(PSIGNB),     M(PSIGND),
        M(PSIGNW),     M(PSLLD),       M(PSLLDQ),     M(PSLLQ),      M(PSLLW),      M(PSRAD),
        M(PSRAW),      M(PSRLD),       M(PSRLDQ),     M(PSRLQ),      M(PSRLW),      M(PSUBB),
        M(PSUBD),      M(PSUBQ),       M(PSUBSB),     M(PSUBSW),     M(PSUBUSB),    M(PSUBUSW),
        M(PSUBW),      M(PTEST),       M(PUNPCKHBW),  M(PUNPCKHDQ),  M(PUNPCKHQDQ), M(PUNPCKHWD),
        M(PUNPCKLBW),  M(PUNPCKLDQ),   M(PUNPCKLQDQ), M(PUNPCKLWD),  M(PXOR),       M(RCPPS),
        M(RCPSS),      M(ROUNDPD),     M(ROUNDPS),    M(ROUNDSD),    M(ROUNDSS),    M(RSQRTPS),
        M(RSQRTSS),    M(SHA1MSG1),    M(SHA1MSG2),   M(SHA1NEXTE),  M(SHA1RNDS4),  M(SHA256MSG1),
        M(SHA256MSG2), M(SHA256RNDS2), M(SHUFPD),     M(SHUFPS),     M(SQRTPD),     M(SQRTPS),
        M(SQRTSD),     M(SQRTSS),      M(STMXCSR),    M(SUBPD),      M(SUBPS),      M(SUBSD),
        M(SUBSS),      M(UCOMISD),     M(UCOMISS),    M(UNPCKHPD),   M(UNPCKHPS),   M(UNPCKLPD),
        M(UNPCKLPS),   M(XORPD),       M(XORPS),      M(MASKMOVQ),   M(MASKMOVDQU),
    });
    return set;
}

MnemonicSet const& branch_set() {
    static MnemonicSet const set = make_set({
        M(CALL), M(JMP),  M(RET),   M(JB),    M(JBE),  M(JL),    M(JLE),    M(JNB), M(JNBE),
        M(JNL),  M(JNLE), M(JNO),   M(JNP),   M(JNS),  M(JNZ),   M(JO),     M(JP),  M(JS),
        M(JZ),   M(JCXZ), M(JECXZ), M(JRCXZ), M(LOOP), M(LOOPE), M(LOOPNE),
    });
    return set;
}

MnemonicSet const& no_access_set() {
    static MnemonicSet const set = make_set({M(LEA), M(NOP), M(PREFETCH), M(PREFETCHNTA), M(PREFETCHT0), M(PREFETCHT1),
                                             M(PREFETCHT2), M(PREFETCHW), M(PREFETCHWT1)});
    return set;
}

SegmentName segment_of(ZydisRegister segment) {
    switch (segment) {
    case ZYDIS_REGISTER_ES: return SegmentName::Es;
    case ZYDIS_REGISTER_CS: return SegmentName::Cs;
    case ZYDIS_REGISTER_SS: return SegmentName::Ss;
    case ZYDIS_REGISTER_FS: return SegmentName::Fs;
    case ZYDIS_REGISTER_GS: return SegmentName::Gs;
    default: return SegmentName::Ds;
    }
}

bool in_encoding(ZydisOperandEncoding encoding) {
    return encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG || encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM ||
           encoding == ZYDIS_OPERAND_ENCODING_OPCODE;
}

// Registers that a plain instruction may touch. General registers that are not encoded in ModRM or the opcode keep
// their number on the host, so they may not be those the translator assigns anew (RSP, R13-R15).
bool register_allowed(ZydisDecodedOperand const& operand, bool branch_or_stack) {
    ZydisRegister reg = operand.reg.value;
    if (is_gpr(reg)) {
        if (in_encoding(operand.encoding) || branch_or_stack) return true;
        unsigned number = gpr_number(reg);
        return is_high_byte(reg) || (number != 4 && number < 13);
    }
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_X87:
    case ZYDIS_REGCLASS_MMX:
    case ZYDIS_REGCLASS_FLAGS: return true;
    case ZYDIS_REGCLASS_XMM: return reg <= ZYDIS_REGISTER_XMM15;
    case ZYDIS_REGCLASS_IP: return branch_or_stack;
    default: break;
    }
    return reg == ZYDIS_REGISTER_X87CONTROL || reg == ZYDIS_REGISTER_X87STATUS || reg == ZYDIS_REGISTER_X87TAG ||
           reg == ZYDIS_REGISTER_MXCSR;
}

bool address_allowed(ZydisDecodedOperandMem const& mem) {
    auto allowed = [](ZydisRegister reg) {
        return reg == ZYDIS_REGISTER_NONE || is_gpr(reg) || reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP;
    };
    return (mem.type == ZYDIS_MEMOP_TYPE_MEM || mem.type == ZYDIS_MEMOP_TYPE_AGEN) && allowed(mem.base) &&
           allowed(mem.index);
}

FpuUse fpu_use(Decoded const& decoded) {
    ZydisMnemonic mnemonic = decoded.insn.mnemonic;
    if (mnemonic == ZYDIS_MNEMONIC_FWAIT) return FpuUse::Wait;
    if (mnemonic == ZYDIS_MNEMONIC_EMMS) return FpuUse::Mmx;
    if (x87_set().test(mnemonic)) return FpuUse::X87;
    if (mnemonic == ZYDIS_MNEMONIC_LDMXCSR || mnemonic == ZYDIS_MNEMONIC_STMXCSR) return FpuUse::Sse;
    FpuUse use = FpuUse::None;
    for (unsigned i = 0; i < decoded.insn.operand_count; ++i) {
        if (decoded.operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER) continue;
        switch (ZydisRegisterGetClass(decoded.operands[i].reg.value)) {
        case ZYDIS_REGCLASS_XMM: return FpuUse::Sse;
        case ZYDIS_REGCLASS_MMX: use = FpuUse::Mmx; break;
        default: break;
        }
    }
    return use;
}

// Plain by mnemonic; the operands are looked at afterwards.
bool plain_mnemonic(Decoded const& decoded) {
    ZydisMnemonic mnemonic = decoded.insn.mnemonic;
    // MOVSD and CMPSD are string instructions too.
    if (decoded.insn.meta.category == ZYDIS_CATEGORY_STRINGOP) return false;
    return integer_set().test(mnemonic) || x87_set().test(mnemonic) || vector_set().test(mnemonic);
}

bool stack_mnemonic(ZydisMnemonic mnemonic) {
    return mnemonic == ZYDIS_MNEMONIC_PUSH || mnemonic == ZYDIS_MNEMONIC_POP || mnemonic == ZYDIS_MNEMONIC_LEAVE;
}

InsnClass class_by_mnemonic(Decoded const& decoded) {
    if (decoded.insn.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return InsnClass::Undefined;
    ZydisMnemonic mnemonic = decoded.insn.mnemonic;
    if (mnemonic == ZYDIS_MNEMONIC_UD0 || mnemonic == ZYDIS_MNEMONIC_UD1 || mnemonic == ZYDIS_MNEMONIC_UD2)
        return InsnClass::Undefined;
    if (plain_mnemonic(decoded)) return InsnClass::Plain;
    if (branch_set().test(mnemonic) && decoded.insn.meta.branch_type != ZYDIS_BRANCH_TYPE_FAR) return InsnClass::Branch;
    if (stack_mnemonic(mnemonic)) return InsnClass::Stack;
    return InsnClass::System;
}

} // namespace

void classify(Decoded& decoded) noexcept {
    decoded.memory = {};
    decoded.bit_string = false;
    decoded.scrub = false;
    decoded.fpu = FpuUse::None;
    decoded.cls = class_by_mnemonic(decoded);
    if (decoded.cls == InsnClass::System || decoded.cls == InsnClass::Undefined) return;

    bool branch_or_stack = decoded.cls != InsnClass::Plain;
    bool no_access = no_access_set().test(decoded.insn.mnemonic);
    bool mask_move =
        decoded.insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || decoded.insn.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU;
    for (unsigned i = 0; i < decoded.insn.operand_count; ++i) {
        ZydisDecodedOperand const& operand = decoded.operands[i];
        switch (operand.type) {
        case ZYDIS_OPERAND_TYPE_IMMEDIATE: continue;
        case ZYDIS_OPERAND_TYPE_REGISTER:
            if (!register_allowed(operand, branch_or_stack)) {
                decoded.cls = InsnClass::System;
                return;
            }
            continue;
        case ZYDIS_OPERAND_TYPE_MEMORY: break;
        default: decoded.cls = InsnClass::System; return;
        }
        // The stack of PUSH, POP, CALL and RET is hidden; everything else that is hidden is not plain.
        bool hidden = operand.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
        if (hidden && branch_or_stack) continue;
        bool implied = decoded.insn.mnemonic == ZYDIS_MNEMONIC_XLAT || mask_move;
        if ((hidden && !implied) || !address_allowed(operand.mem) || decoded.memory.present) {
            decoded.cls = InsnClass::System;
            return;
        }
        if (no_access || operand.mem.type == ZYDIS_MEMOP_TYPE_AGEN) continue;
        decoded.memory.present = true;
        decoded.memory.operand = static_cast<uint8_t>(i);
        decoded.memory.read = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
        decoded.memory.write = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
        decoded.memory.segment = segment_of(operand.mem.segment);
        decoded.memory.size = static_cast<uint16_t>(operand.size / 8);
        if (decoded.insn.mnemonic == ZYDIS_MNEMONIC_XLAT) {
            // Zydis names the base alone.
            decoded.operands[i].mem.index = ZYDIS_REGISTER_AL;
            decoded.operands[i].mem.scale = 1;
        }
        if (decoded.insn.mnemonic == ZYDIS_MNEMONIC_CLFLUSH) {
            decoded.memory.size = 1;
            decoded.memory.read = true;
            decoded.memory.write = false;
        }
        // The masked bytes are merged in a buffer: all bytes are read and written (SDM allows faults for masked bytes).
        if (mask_move) decoded.memory.read = decoded.memory.write = true;
        if (decoded.memory.size == 0 || decoded.memory.size > k_max_memory_operand) {
            decoded.cls = InsnClass::System;
            return;
        }
    }
    if (mask_move) decoded.scrub = true;
    switch (decoded.insn.mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE: decoded.scrub = true; break;
    case ZYDIS_MNEMONIC_BT:
    case ZYDIS_MNEMONIC_BTC:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTS:
        decoded.bit_string = decoded.memory.present && decoded.operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER;
        break;
    default: break;
    }
    if (decoded.cls == InsnClass::Plain) decoded.fpu = fpu_use(decoded);
}

#undef M

} // namespace coffer::vmm::soft
