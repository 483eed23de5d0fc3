#include "tests/unit/soft/random_code.hpp"

#include <cstring>

#include <fmt/format.h>

#include "base/result.hpp"

namespace coffer::tests {

using namespace vmm;
using namespace vmm::soft;

namespace {

bool is_instruction_pointer(ZydisRegister reg) {
    return reg == ZYDIS_REGISTER_RIP || reg == ZYDIS_REGISTER_EIP;
}

// Of an odd number, modulo 2^64 (each step of Newton's doubles the bits that are right).
uint64_t inverse(uint64_t odd) {
    uint64_t x = odd;
    for (int i = 0; i < 6; ++i) x *= 2 - odd * x;
    return x;
}

} // namespace

std::vector<uint8_t> Program::at(uint64_t address) const {
    std::vector<uint8_t> code(m_bytes);
    for (auto const& r : m_relative) {
        auto disp = static_cast<uint32_t>(r.target - (address + r.end));
        std::memcpy(code.data() + r.offset, &disp, 4);
    }
    return code;
}

std::vector<uint8_t> Program::native_at(uint64_t address) const {
    std::vector<uint8_t> code = at(address);
    for (auto const& replaced : m_native) code[replaced.offset] = replaced.byte;
    return code;
}

void Program::put(std::initializer_list<int> bytes) {
    for (int byte : bytes) m_bytes.push_back(static_cast<uint8_t>(byte));
}

void Program::put_le(uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) m_bytes.push_back(static_cast<uint8_t>(value >> (i * 8)));
}

void Program::mov_imm(unsigned reg, uint64_t value) {
    put({static_cast<int>(0x48 | reg >> 3), static_cast<int>(0xB8 | (reg & 7))});
    put_le(value, 8);
}

void Program::patch_jump(size_t offset, size_t bytes, size_t target) {
    auto disp = static_cast<int64_t>(target) - static_cast<int64_t>(offset + bytes);
    COFFER_ASSERT(bytes == 4 || (disp >= -128 && disp <= 127));
    for (size_t i = 0; i < bytes; ++i) m_bytes[offset + i] = static_cast<uint8_t>(disp >> (i * 8));
}

void Program::put_relative(uint64_t target, size_t behind) {
    m_relative.push_back({size(), size() + 4 + behind, target});
    put_le(0, 4);
}

CodeMaker::CodeMaker(std::mt19937_64& random, Buffer const& buffer, bool hide_tzcnt)
    : m_random(random), m_buffer(buffer), m_hide_tzcnt(hide_tzcnt) {}

uint64_t CodeMaker::place() {
    bool aligned = m_random() % 8 != 0;
    return m_buffer.first + (m_random() % m_buffer.size & (aligned ? ~0x3FULL : ~0ULL));
}

std::optional<std::string_view> CodeMaker::append(Program& to, Decoded const& d) {
    Program before = to;
    std::optional<std::string_view> refused;
    switch (d.cls) {
    case InsnClass::Plain: refused = plain(to, d); break;
    case InsnClass::Stack: refused = stack(to, d); break;
    case InsnClass::Branch: refused = branch(to, d); break;
    case InsnClass::System: refused = "system instruction"; break;
    case InsnClass::Undefined: refused = "undefined"; break;
    }
    if (refused) to = std::move(before);
    return refused;
}

std::optional<std::string_view> CodeMaker::plain(Program& to, Decoded const& d) {
    if (d.insn.mnemonic == ZYDIS_MNEMONIC_RDRAND || d.insn.mnemonic == ZYDIS_MNEMONIC_RDSEED) return "random number";
    if (d.scrub) return "stores the FPU's pointers, which the guest does not see";
    // 0F 0D of a register: PREFETCH of nothing, which AMD refuses and Intel takes for a NOP.
    if (d.insn.opcode_map == ZYDIS_OPCODE_MAP_0F && d.insn.opcode == 0x0D && !d.memory.present &&
        d.insn.raw.modrm.mod == 3)
        return "PREFETCH of a register";
    if (auto refused = memory(to, d)) return refused;
    if (d.insn.mnemonic == ZYDIS_MNEMONIC_BSF || d.insn.mnemonic == ZYDIS_MNEMONIC_BSR)
        for (unsigned i = 0; i < d.insn.raw.prefix_count; ++i)
            if (d.insn.raw.prefixes[i].value == 0xF3) {
                // TZCNT and LZCNT on the host; the guest has neither.
                if (!m_hide_tzcnt) return "TZCNT or LZCNT, which the guest has not";
                if (d.memory.segment == SegmentName::Fs || d.memory.segment == SegmentName::Gs)
                    return "TZCNT or LZCNT with a segment";
                to.m_native.push_back({to.size() - d.length() + i, 0x3E});
            }
    return std::nullopt;
}

// Points the memory operand into the buffer and puts the instruction.
std::optional<std::string_view> CodeMaker::memory(Program& to, Decoded const& d) {
    std::vector<uint8_t> bytes(d.bytes.begin(), d.bytes.begin() + d.length());
    std::optional<uint64_t> relative;
    std::optional<size_t> segment_prefix;
    ZydisDecodedOperandMem const* mem = nullptr;
    if (d.memory.present)
        mem = &d.operands[d.memory.operand].mem;
    else
        for (size_t i = 0; i < d.insn.operand_count_visible; ++i) // LEA, long NOP and prefetch compute an address
            if (d.operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY) mem = &d.operands[i].mem;
    if (mem && is_instruction_pointer(mem->base)) {
        if (d.insn.address_width != 64) return "EIP-relative";
        relative = place();
    }
    if (d.memory.present) {
        bool segmented = d.memory.segment == SegmentName::Fs || d.memory.segment == SegmentName::Gs;
        uint64_t where = place() - (segmented ? m_buffer.segment : 0);
        if (relative && segmented) relative = where;
        // 32-bit addresses ignore it, bit indices do not.
        uint64_t const high = d.insn.address_width == 64 || d.bit_string ? 0 : m_random() << 32;
        if (d.memory.segment == SegmentName::Fs)
            for (unsigned i = 0; i < d.insn.raw.prefix_count; ++i)
                if (d.insn.raw.prefixes[i].value == 0x64) segment_prefix = i;
        bool const has_base = mem->base != ZYDIS_REGISTER_NONE && !relative;
        bool const has_index = mem->index != ZYDIS_REGISTER_NONE;
        unsigned const base = has_base ? gpr_number(mem->base) : 16, index = has_index ? gpr_number(mem->index) : 16;
        auto const disp = static_cast<uint64_t>(mem->disp.value);
        if (has_base && base == index) {
            if (mem->scale == 1) {
                where += (where - disp) & 1;
                to.mov_imm(base, (where - disp) >> 1);
            } else {
                to.mov_imm(base, (where - disp) * inverse(mem->scale + 1U));
            }
        } else {
            uint64_t scaled = 0;
            if (has_index) {
                uint64_t value = m_random() % 512;
                to.mov_imm(index, value | high);
                scaled = value * mem->scale;
            }
            if (has_base) {
                uint64_t value = where - scaled - disp;
                to.mov_imm(base, d.insn.address_width == 64 ? value : (value & 0xFFFFFFFF) | high);
            } else if (!relative) {
                if (!d.insn.raw.disp.size) return "address without base and displacement";
                if (d.insn.raw.disp.size < 32) return "short absolute address";
                uint64_t absolute = where - scaled;
                for (unsigned i = 0; i < d.insn.raw.disp.size / 8U; ++i)
                    bytes[d.insn.raw.disp.offset + i] = static_cast<uint8_t>(absolute >> (i * 8));
            }
        }
        if (d.bit_string) {
            // The index reaches beyond the operand, and must stay within the buffer's margins.
            unsigned bit = gpr_number(d.operands[1].reg.value);
            if (bit == base) return "bit string indexed by its own base";
            if (bit != index) to.mov_imm(bit, static_cast<uint64_t>(static_cast<int64_t>(m_random() % 8192) - 4096));
        }
    }
    size_t const start = to.size();
    to.m_bytes.insert(to.m_bytes.end(), bytes.begin(), bytes.end());
    if (relative) to.m_relative.push_back({start + d.insn.raw.disp.offset, start + d.length(), *relative});
    if (segment_prefix) to.m_native.push_back({start + *segment_prefix, 0x65});
    return std::nullopt;
}

std::optional<std::string_view> CodeMaker::stack(Program& to, Decoded const& d) {
    bool leave = d.insn.mnemonic == ZYDIS_MNEMONIC_LEAVE;
    to.mov_imm(leave ? 5 : 4, place());
    if (d.memory.present && d.operands[d.memory.operand].mem.base == ZYDIS_REGISTER_RSP) {
        int64_t disp = d.operands[d.memory.operand].mem.disp.value;
        if (disp > 2048 || disp < -2048) return "stack operand far from the top of the stack";
    }
    return memory(to, d);
}

std::optional<std::string_view> CodeMaker::branch(Program& to, Decoded const& d) {
    auto const& imm = d.insn.raw.imm[0];
    if (!imm.is_relative || d.insn.mnemonic == ZYDIS_MNEMONIC_CALL) return "call, return or indirect jump";
    // AMD truncates RIP to 16 bits, Intel ignores the prefix (SDM vol. 2, Jcc; APM vol. 3, 1.2.7).
    if (d.insn.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) return "jump of operand size 16";
    // Undocumented: on some CPUs they turn LOOPE and LOOPNE into each other.
    if (d.insn.opcode == 0xE0 || d.insn.opcode == 0xE1)
        for (unsigned i = 0; i < d.insn.raw.prefix_count; ++i)
            if (d.insn.raw.prefixes[i].value == 0xF2 || d.insn.raw.prefixes[i].value == 0xF3)
                return "LOOPE or LOOPNE with a repeat prefix";
    // It skips one instruction, or does not.
    if (auto refused = memory(to, d)) return refused;
    size_t bytes = imm.size / 8U, offset = to.size() - d.length() + imm.offset;
    for (size_t i = 0; i < bytes; ++i) to.m_bytes[offset + i] = 0;
    to.m_bytes[offset] = 4;
    to.put({0x48, 0x8D, 0x40, 0x01}); // lea rax, [rax + 1]
    return std::nullopt;
}

uint64_t random_value(std::mt19937_64& random) {
    switch (random() % 4) {
    case 0: return random();
    case 1: return random() % 256;
    case 2: return ~(random() % 256);
    default: return uint64_t{1} << (random() % 64);
    }
}

uint64_t dead_flags(std::span<uint8_t const> code) {
    uint64_t read = 0, written = 0;
    for (size_t at = 0; at < code.size();) {
        Decoded d{};
        if (decode(64, code.subspan(at), d) != DecodeStatus::Ok) break;
        auto const& flags = *d.insn.cpu_flags;
        read |= flags.tested & ~written;
        written |= flags.modified | flags.set_0 | flags.set_1 | flags.undefined;
        at += d.length();
    }
    return written & ~read;
}

std::string disassembly(std::vector<uint8_t> const& code, uint64_t address) {
    std::string result;
    ZydisFormatter formatter;
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    for (size_t at = 0; at < code.size();) {
        Decoded d{};
        if (decode(64, std::span(code).subspan(at), d) != DecodeStatus::Ok) break;
        char line[128];
        ZydisFormatterFormatInstruction(&formatter, &d.insn, d.operands.data(), d.insn.operand_count_visible, line,
                                        sizeof line, address + at, nullptr);
        result += fmt::format("{:x}: ", address + at);
        for (size_t i = 0; i < d.length(); ++i) result += fmt::format("{:02x} ", code[at + i]);
        result += std::string(line) + "\n";
        at += d.length();
    }
    return result;
}

} // namespace coffer::tests
