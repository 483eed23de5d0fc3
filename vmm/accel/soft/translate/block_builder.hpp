// Translates one basic block: decoded guest instructions in, host code and its exits out.
#pragma once

#include <deque>
#include <vector>

#include "vmm/accel/soft/translate/block.hpp"
#include "vmm/accel/soft/translate/emitter.hpp"
#include "vmm/accel/soft/translate/liveness.hpp"

namespace coffer::vmm::soft {

// The guest code that a block is made from.
struct BlockSource {
    uint64_t rip = 0;
    uint64_t gpa = 0;
    ModeKey key;
    uint64_t cr0 = 0, cr4 = 0;           // for instructions that the FPU bits forbid
    std::span<uint8_t const> first_page; // from `rip` to the end of its page
    // For an instruction that crosses into the next page: its bytes from `rip` on, or empty to stop before it.
    std::span<uint8_t const> crossing;
};

class BlockBuilder {
public:
    static constexpr size_t k_max_instructions = 64;
    static constexpr size_t k_max_code = 48 * 1024;

    // Where the code will run, and where its sites live. The sites have stable addresses.
    struct Target {
        uint8_t const* executable = nullptr; // address of the code memory
        uint32_t offset = 0;                 // where in it the block goes
        std::deque<Site>* sites = nullptr;
    };

    BlockBuilder();

    enum class Outcome : uint8_t {
        Built,
        Crossing, // the first instruction crosses the page: give `crossing`
        TooLong,  // the first instruction: #GP(0)
    };

    // Fills `block` and code().
    Outcome build(BlockSource const& source, Target const& target, Block& block);
    std::span<uint8_t const> code() const { return {m_buffer.data(), m_size}; }
    std::span<Site* const> sites() const { return m_sites; }
    std::span<InsnMark const> marks() const { return m_marks; }
    std::span<Decoded const> instructions() const { return {m_insns.data(), m_count}; }

private:
    struct Stub {
        Site* site;
        size_t patch; // rel32 in the body that goes to the stub
        bool recover; // Access: r14 is linear ^ tag, and becomes linear again
        int32_t tag;  // the tag's offset
    };
    enum class Flags : uint8_t { Host, Slot };

    Outcome decode_all(BlockSource const& source);
    void emit_instruction(size_t i);
    void emit_plain_instruction(size_t i);
    void emit_stack(size_t i);
    void emit_branch(size_t i);
    void emit_system(size_t i, SiteKind kind, Vector vector = Vector::UD);

    void emit_memory_address(size_t i);
    void emit_check(size_t i, uint16_t size, bool write);
    void finish_accesses();
    void save_flags();
    void restore_flags();
    void emit_jump_edge(uint64_t target);
    void emit_conditional_edge(std::initializer_list<uint8_t> opcode, uint64_t target);
    void emit_edge(uint64_t target, size_t patch);
    void emit_poll(uint64_t target);
    void emit_indirect();
    void emit_exit(Site& site);
    void emit_stubs();

    Site& new_site(SiteKind kind, uint64_t rip);
    uint64_t rip_of(size_t i) const { return m_rips[i]; }
    uint64_t next_rip(size_t i) const;
    uint64_t truncate(uint64_t rip) const { return m_source.key.code_bits == 64 ? rip : rip & 0xFFFF'FFFF; }
    bool wide() const { return m_source.key.code_bits == 64; }
    bool same_page(uint64_t target) const;

    std::vector<Decoded> m_insns;
    std::array<FlagUse, k_max_instructions> m_uses;
    std::array<uint32_t, k_max_instructions> m_live;
    std::array<uint64_t, k_max_instructions> m_rips;
    size_t m_count = 0;
    bool m_ended = false; // the last instruction transfers control

    std::vector<uint8_t> m_buffer;
    size_t m_size = 0;
    Emitter m_e{nullptr, 0};
    BlockSource m_source;
    Target m_target;
    Block* m_block = nullptr;
    Flags m_flags = Flags::Host;
    bool m_slot_valid = false; // with m_flags Host: the slot holds the same
    std::vector<Stub> m_stubs;
    std::vector<Site*> m_sites;
    std::vector<InsnMark> m_marks;
    std::vector<Site*> m_open_accesses; // of the current instruction; their `resume` is behind it
};

} // namespace coffer::vmm::soft
