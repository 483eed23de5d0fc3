// Writes host instructions into a buffer: bytes, and the few instructions that scaffolding is made of. All memory
// operands of scaffolding are relative to the state pointer (host RSP).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/result.hpp"

namespace coffer::vmm::soft {

// Host registers by hardware number. The guest's registers are themselves, but for RSP (in r13) and R13-R15 (in
// Cpu::gpr); r14 and r15 are scratch, rsp is the state pointer.
enum class Host : uint8_t { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 };

constexpr uint8_t low3(Host reg) {
    return static_cast<uint8_t>(reg) & 7;
}
constexpr uint8_t bit3(Host reg) {
    return static_cast<uint8_t>(reg) >> 3;
}

class Emitter {
public:
    Emitter(uint8_t* begin, size_t capacity) : m_begin(begin), m_at(begin), m_end(begin + capacity) {}

    size_t size() const { return static_cast<size_t>(m_at - m_begin); }
    size_t room() const { return static_cast<size_t>(m_end - m_at); }
    uint8_t* begin() const { return m_begin; }

    void byte(uint8_t value) {
        COFFER_ASSERT(m_at < m_end);
        *m_at++ = value;
    }
    template <class... B>
    void bytes(B... values) {
        (byte(static_cast<uint8_t>(values)), ...);
    }
    void raw(void const* from, size_t count) {
        COFFER_ASSERT(count <= room());
        std::memcpy(m_at, from, count);
        m_at += count;
    }
    void dword(uint32_t value) { raw(&value, 4); }
    void qword(uint64_t value) { raw(&value, 8); }
    void patch_dword(size_t offset, uint32_t value) {
        COFFER_ASSERT(offset + 4 <= size());
        std::memcpy(m_begin + offset, &value, 4);
    }
    void patch_byte(size_t offset, uint8_t value) {
        COFFER_ASSERT(offset < size());
        m_begin[offset] = value;
    }

    // op reg, [rsp+disp], or with the operands the other way round: as `opcode` says.
    void state(uint8_t opcode, Host reg, int32_t disp, bool wide = true) {
        rex(wide, bit3(reg), 0, 0);
        byte(opcode);
        state_modrm(low3(reg), disp);
    }
    void load(Host to, int32_t disp) { state(0x8B, to, disp); }
    void load32(Host to, int32_t disp) { state(0x8B, to, disp, false); }
    void store(int32_t disp, Host from) { state(0x89, from, disp); }
    void jump_state(int32_t disp) {
        byte(0xFF);
        state_modrm(4, disp);
    }
    // op reg, [rsp+index+disp]
    void state_indexed(uint8_t opcode, Host reg, Host index, int32_t disp, uint8_t scale_log2 = 0) {
        rex(true, bit3(reg), bit3(index), 0);
        byte(opcode);
        bytes(0x84 | low3(reg) << 3, static_cast<uint8_t>(scale_log2 << 6 | low3(index) << 3 | 4));
        dword(static_cast<uint32_t>(disp));
    }
    void move(Host to, Host from, bool wide = true) { reg_reg(0x8B, to, from, wide); }
    void reg_reg(uint8_t opcode, Host reg, Host rm, bool wide = true) {
        rex(wide, bit3(reg), 0, bit3(rm));
        bytes(opcode, 0xC0 | low3(reg) << 3 | low3(rm));
    }
    // The shortest form for a constant; flags stay.
    void move_imm(Host to, uint64_t value) {
        if (value <= 0xFFFF'FFFF) {
            rex(false, 0, 0, bit3(to));
            byte(static_cast<uint8_t>(0xB8 | low3(to)));
            dword(static_cast<uint32_t>(value));
        } else if (static_cast<int64_t>(value) == static_cast<int32_t>(value)) {
            rex(true, 0, 0, bit3(to));
            bytes(0xC7, 0xC0 | low3(to));
            dword(static_cast<uint32_t>(value));
        } else {
            rex(true, 0, 0, bit3(to));
            byte(static_cast<uint8_t>(0xB8 | low3(to)));
            qword(value);
        }
    }
    // lea to, [base + disp] with a 64- or 32-bit result
    void lea(Host to, Host base, int32_t disp, bool wide = true) {
        rex(wide, bit3(to), 0, bit3(base));
        byte(0x8D);
        base_modrm(low3(to), base, disp);
    }
    void lea_indexed(Host to, Host base, Host index, uint8_t scale_log2, int32_t disp, bool wide = true) {
        COFFER_ASSERT(index != Host::rsp);
        rex(wide, bit3(to), bit3(index), bit3(base));
        byte(0x8D);
        bool disp8 = disp == static_cast<int8_t>(disp);
        bytes(static_cast<uint8_t>((disp8 ? 0x44 : 0x84) | low3(to) << 3),
              static_cast<uint8_t>(scale_log2 << 6 | low3(index) << 3 | low3(base)));
        if (disp8)
            byte(static_cast<uint8_t>(disp));
        else
            dword(static_cast<uint32_t>(disp));
    }
    // lea to, [index*scale + disp32]
    void lea_scaled(Host to, Host index, uint8_t scale_log2, int32_t disp, bool wide = true) {
        COFFER_ASSERT(index != Host::rsp);
        rex(wide, bit3(to), bit3(index), 0);
        bytes(0x8D, 0x04 | low3(to) << 3, static_cast<uint8_t>(scale_log2 << 6 | low3(index) << 3 | 5));
        dword(static_cast<uint32_t>(disp));
    }
    // op /extension rm, imm32 or imm8
    void alu_imm(uint8_t extension, Host rm, int32_t imm, bool wide = true) {
        rex(wide, 0, 0, bit3(rm));
        bool imm8 = imm == static_cast<int8_t>(imm);
        bytes(imm8 ? 0x83 : 0x81, 0xC0 | extension << 3 | low3(rm));
        if (imm8)
            byte(static_cast<uint8_t>(imm));
        else
            dword(static_cast<uint32_t>(imm));
    }
    void alu_imm32(uint8_t extension, Host rm, int32_t imm, bool wide = true) {
        rex(wide, 0, 0, bit3(rm));
        bytes(0x81, 0xC0 | extension << 3 | low3(rm));
        dword(static_cast<uint32_t>(imm));
    }
    void shift_imm(uint8_t extension, Host rm, uint8_t count, bool wide = true) {
        rex(wide, 0, 0, bit3(rm));
        bytes(0xC1, 0xC0 | extension << 3 | low3(rm), count);
    }

    void rex(bool w, uint8_t r, uint8_t x, uint8_t b, bool force = false) {
        uint8_t value = static_cast<uint8_t>(0x40 | (w ? 8 : 0) | r << 2 | x << 1 | b);
        if (value != 0x40 || force) byte(value);
    }
    void state_modrm(uint8_t reg, int32_t disp) {
        if (disp == static_cast<int8_t>(disp))
            bytes(0x44 | reg << 3, 0x24, static_cast<uint8_t>(disp));
        else {
            bytes(0x84 | reg << 3, 0x24);
            dword(static_cast<uint32_t>(disp));
        }
    }

private:
    void base_modrm(uint8_t reg, Host base, int32_t disp) {
        bool disp8 = disp == static_cast<int8_t>(disp);
        byte(static_cast<uint8_t>((disp8 ? 0x40 : 0x80) | reg << 3 | low3(base)));
        if (low3(base) == 4) byte(0x24);
        if (disp8)
            byte(static_cast<uint8_t>(disp));
        else
            dword(static_cast<uint32_t>(disp));
    }

    uint8_t* m_begin;
    uint8_t* m_at;
    uint8_t* m_end;
};

} // namespace coffer::vmm::soft
