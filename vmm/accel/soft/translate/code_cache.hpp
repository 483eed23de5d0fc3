// Translated blocks: finding, making, linking and dropping them. Belongs to one vCPU and its thread, but for
// memory_written().
#pragma once

#include <bitset>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "vmm/accel/soft/translate/block.hpp"
#include "vmm/accel/soft/translate/block_builder.hpp"
#include "vmm/accel/soft/translate/code_memory.hpp"
#include "vmm/accel/soft/translate/guest_memory_map.hpp"

namespace coffer::vmm::soft {

class CodeCache {
public:
    static constexpr size_t k_code_size = size_t{64} << 20;

    static Result<std::unique_ptr<CodeCache>> create(Frame& frame, GuestMemoryMap& memory);
    ~CodeCache();

    // The block for Cpu::rip in the CPU's mode, translated if need be. Null: the instruction there cannot be translated
    // (not RAM) and must be interpreted, or `fault` is set and Cpu::fault says what fetching raises.
    Block* find(ModeKey key, bool& fault);

    // Where emitted code enters a block or continues at a site.
    uint8_t const* entry(Block const& block) const { return m_code.executable() + block.code; }

    void link(Site& site, Block& target);
    // Lets indirect branches find the block.
    void insert_jump(Block const& block);

    // Address translation changed: system/ says so by way of translation_changed().
    void translation_changed(bool globals_too) noexcept;
    void translation_changed_at(uint64_t linear) noexcept;
    // The CPU's mode for this privilege may have changed: entries of the jump cache hold for one mode.
    void enter_mode(ModeKey key) noexcept;
    // Undoes poisoned salts; before attention is looked at.
    void restore_salts() noexcept;

    // Guest code changed. True from take_code_changed() where a block was dropped since the last call.
    void code_written(uint64_t gpa, size_t size) noexcept;
    bool take_code_changed() noexcept { return std::exchange(m_code_changed, false); }
    // Any thread: to be looked at by process_stale() on the vCPU's.
    void memory_written(uint64_t gpa, size_t size) noexcept;
    // Any thread: other memory lies behind these addresses now.
    void memory_replaced(uint64_t gpa, size_t size) noexcept;
    void process_stale() noexcept;

    void flush_all() noexcept;

    // The instruction that a host address belongs to.
    struct Origin {
        Block* block = nullptr;
        InsnMark mark;
    };
    Origin origin_of(uintptr_t host) const noexcept;

    CodeMemory const& code() const { return m_code; }

    struct Counters {
        uint64_t blocks = 0, instructions = 0, flushes = 0, invalidations = 0, links = 0;
    };
    Counters const& counters() const { return m_counters; }

private:
    CodeCache(Frame& frame, GuestMemoryMap& memory, CodeMemory code);

    // Recent translations of code pages.
    struct FetchEntry {
        uint64_t linear_page = 1; // with bit 0 for CPL 3
        uint64_t generation = 0;
        uint64_t gpa_page = 0;
        bool global = false;
    };
    // Which linear pages code was fetched from since all that depends on them was last dropped; a hash may say more.
    struct FetchedPages {
        std::bitset<16384> small;
        std::bitset<4096> large;
        bool huge = false;

        bool holds(uint64_t linear) const {
            return huge || small[(linear >> 12 ^ linear >> 26) % small.size()] ||
                   large[(linear >> 21 ^ linear >> 33) % large.size()];
        }
    };
    static constexpr size_t k_buckets = size_t{1} << 17;

    FetchEntry const* translate_page(uint64_t linear, bool user) noexcept;
    Block*& bucket(uint64_t gpa, uint64_t rip, ModeKey key) noexcept;
    Block* build(uint64_t rip, FetchEntry const& fetched, ModeKey key, bool& fault);
    void drop(Block& block) noexcept;
    void unlink(Site& site) noexcept;
    void forget_incoming(Site& site) noexcept;
    void set_rel32(uint32_t patch, uint32_t target) noexcept;
    void new_generation(size_t privilege) noexcept;
    void clear_jumps() noexcept;

    Frame& m_frame;
    GuestMemoryMap& m_memory;
    CodeMemory m_code;
    uint32_t m_used = 0;
    BlockBuilder m_builder;
    std::array<uint8_t, BlockBuilder::k_max_instructions * 15> m_source_bytes{};

    std::deque<Block> m_blocks; // in the order of their code
    std::deque<Site> m_sites;
    std::vector<InsnMark> m_marks; // of all blocks
    std::vector<Block*> m_index;   // hashed by gpa, rip and mode
    std::unordered_map<uint64_t, std::vector<Block*>> m_pages;
    std::vector<Site*> m_cross_links;  // undone by every change of translation
    std::vector<Site*> m_global_links; // undone by changes of global translations
    std::array<FetchEntry, 512> m_fetch{};
    uint64_t m_fetch_generation = 1;
    std::array<FetchedPages, 2> m_fetched{}; // lower half, upper half
    std::array<uint64_t, 2> m_salt_generation{1, 1};
    std::array<ModeKey, 2> m_salt_mode{};
    bool m_local_jumps = false; // the jump cache holds CPL 0-2 entries that a CR3 load invalidates
    bool m_code_changed = false;
    Counters m_counters;

    std::mutex m_stale_mutex;
    std::vector<std::pair<uint64_t, uint64_t>> m_stale; // first, size
};

} // namespace coffer::vmm::soft
