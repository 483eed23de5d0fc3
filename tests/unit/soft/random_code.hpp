// Code made of real programs' instructions whose memory operands lie in a buffer, so that it can run on two sides.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tests/unit/soft/encodings.hpp"

namespace coffer::tests {

// Memory operands start within `place`, `size` bytes from `first`; bit strings and stacks reach 1 KiB further on both
// sides. FS and GS have the base `segment`. All of it below 2 GiB, for absolute and 32-bit addresses.
struct Buffer {
    uint64_t first;
    size_t size;
    uint64_t segment;
};
constexpr size_t k_buffer_margin = 0x1000;

// Code for any address: RIP-relative operands are resolved when it is placed.
class Program {
public:
    std::vector<uint8_t> at(uint64_t address) const;
    // For a user process on the host, whose FS is the C library's: FS becomes GS; what the guest's CPUID hides, loses
    // its prefix.
    std::vector<uint8_t> native_at(uint64_t address) const;
    size_t size() const { return m_bytes.size(); }

    void put(std::initializer_list<int> bytes);
    void put_le(uint64_t value, size_t bytes);
    void mov_imm(unsigned reg, uint64_t value);
    // A signed displacement of `bytes` at `offset`, to `target`, from the end of the displacement.
    void patch_jump(size_t offset, size_t bytes, size_t target);
    // A disp32 to the linear address `target`, in an instruction that has `behind` more bytes after it.
    void put_relative(uint64_t target, size_t behind = 0);

private:
    friend class CodeMaker;
    struct Relative {
        size_t offset;
        size_t end;
        uint64_t target;
    };
    struct Replaced {
        size_t offset;
        uint8_t byte;
    };
    std::vector<uint8_t> m_bytes;
    std::vector<Relative> m_relative;
    std::vector<Replaced> m_native;
};

class CodeMaker {
public:
    // `hide_tzcnt`: the other side runs native_at(); else TZCNT and LZCNT are left out.
    CodeMaker(std::mt19937_64& random, Buffer const& buffer, bool hide_tzcnt);

    // The instruction, with what points its operands into the buffer in front. Else why it cannot be in a comparison;
    // `to` is then unchanged.
    std::optional<std::string_view> append(Program& to, vmm::soft::Decoded const& d);

private:
    std::optional<std::string_view> plain(Program& to, vmm::soft::Decoded const& d);
    std::optional<std::string_view> stack(Program& to, vmm::soft::Decoded const& d);
    std::optional<std::string_view> branch(Program& to, vmm::soft::Decoded const& d);
    std::optional<std::string_view> memory(Program& to, vmm::soft::Decoded const& d);
    uint64_t place();

    std::mt19937_64& m_random;
    Buffer m_buffer;
    bool m_hide_tzcnt;
};

// Registers and memory are likely to be small, almost all ones, or a single bit: there flags and carries change.
uint64_t random_value(std::mt19937_64& random);

// Flags that `code`, straight-line, overwrites or leaves undefined before it reads them. Where its first instruction
// faults, the translator may have let them go: the handler sees others than the host's, which no code behind it can
// see.
uint64_t dead_flags(std::span<uint8_t const> code);

// In Intel syntax, a line an instruction.
std::string disassembly(std::vector<uint8_t> const& code, uint64_t address);

} // namespace coffer::tests
