#include "vmm/accel/soft/translate/code_cache.hpp"

#include <algorithm>
#include <cstring>

#include "vmm/accel/soft/translate/verifier.hpp"

namespace coffer::vmm::soft {

namespace {

// Matches no jump: RIP + salt + tag is 0 for no canonical RIP.
constexpr uint64_t k_empty_tag = 5;
constexpr size_t k_stale_limit = 4096;
constexpr uint32_t k_reserved_code = 64; // at the start: what empty jump entries point at

bool upper_half(uint64_t linear) {
    return (linear >> 63) != 0;
}

} // namespace

Result<std::unique_ptr<CodeCache>> CodeCache::create(Frame& frame, GuestMemoryMap& memory) {
    CodeMemory code = TRY(CodeMemory::create(k_code_size));
    return std::unique_ptr<CodeCache>(new CodeCache(frame, memory, std::move(code)));
}

CodeCache::CodeCache(Frame& frame, GuestMemoryMap& memory, CodeMemory code)
    : m_frame(frame), m_memory(memory), m_code(std::move(code)) {
    memory.set_cache(this);
    flush_all();
    for (size_t privilege = 0; privilege < 2; ++privilege) new_generation(privilege);
}

CodeCache::~CodeCache() {
    m_memory.set_cache(nullptr);
}

// ---- Finding and making ----

CodeCache::FetchEntry const* CodeCache::translate_page(uint64_t linear, bool user) noexcept {
    uint64_t page = (linear & k_page_mask) | (user ? 1 : 0);
    FetchEntry& entry = m_fetch[(linear >> 12) % m_fetch.size()];
    if (entry.linear_page == page && entry.generation == m_fetch_generation) return &entry;
    FetchPage found;
    if (!fetch_translate(m_frame.cpu, linear, found)) return nullptr;
    entry = FetchEntry{page, m_fetch_generation, found.gpa & k_page_mask, found.global && upper_half(linear)};
    FetchedPages& fetched = m_fetched[upper_half(linear) ? 1 : 0];
    fetched.small.set((linear >> 12 ^ linear >> 26) % fetched.small.size());
    if (found.large) fetched.large.set((linear >> 21 ^ linear >> 33) % fetched.large.size());
    fetched.huge |= found.huge;
    return &entry;
}

Block*& CodeCache::bucket(uint64_t gpa, uint64_t rip, ModeKey key) noexcept {
    uint64_t hash = gpa * 0x9E37'79B9'7F4A'7C15ULL ^ (rip + key.packed()) * 0xC2B2'AE3D'27D4'EB4FULL;
    return m_index[hash >> 47 & (k_buckets - 1)];
}

Block* CodeCache::find(ModeKey key, bool& fault) {
    uint64_t rip = m_frame.cpu.rip;
    fault = false;
    FetchEntry const* found = translate_page(rip, key.user);
    if (!found) {
        fault = true;
        return nullptr;
    }
    FetchEntry const fetched = *found;
    uint64_t gpa = fetched.gpa_page | (rip & (k_page_size - 1));
    for (Block* block = bucket(gpa, rip, key); block; block = block->next) {
        if (block->gpa != gpa || block->rip != rip || !(block->key == key)) continue;
        block->global = fetched.global;
        if (block->second_page == k_no_page) return block;
        uint64_t next_page = (rip & k_page_mask) + k_page_size;
        if (key.code_bits == 32) next_page &= 0xFFFF'FFFF;
        FetchEntry const* second = translate_page(next_page, key.user);
        if (!second) {
            fault = true;
            return nullptr;
        }
        if (block->second_page == second->gpa_page) return block;
        drop(*block);
        break;
    }
    return build(rip, fetched, key, fault);
}

Block* CodeCache::build(uint64_t rip, FetchEntry const& fetched, ModeKey key, bool& fault) {
    uint64_t gpa = fetched.gpa_page | (rip & (k_page_size - 1));
    bool writable;
    std::byte* page = m_memory.host_page(gpa & k_page_mask, writable);
    if (!page) return nullptr;
    if (m_code.size() - m_used < BlockBuilder::k_max_code) flush_all();

    // Stores must be seen from before the bytes are read.
    uint64_t gpa_page = gpa & k_page_mask;
    bool first = !m_memory.has_code(gpa_page);
    m_memory.count_code(gpa_page, 1);
    if (first) flush_tlb_writes_to(m_frame.cpu, gpa_page);

    size_t in_page = gpa & (k_page_size - 1);
    BlockSource source;
    source.rip = rip;
    source.gpa = gpa;
    source.key = key;
    source.cr0 = m_frame.cpu.cr0;
    source.cr4 = m_frame.cpu.cr4;
    // A copy: what is decoded must not change between two looks at it.
    size_t available = std::min(k_page_size - in_page, m_source_bytes.size());
    std::memcpy(m_source_bytes.data(), page + in_page, available);
    source.first_page = std::span<uint8_t const>(m_source_bytes).first(available);
    BlockBuilder::Target target{m_code.executable(), m_used, &m_sites};

    Block& block = m_blocks.emplace_back();
    block.second_page = k_no_page;
    auto outcome = m_builder.build(source, target, block);
    std::array<uint8_t, 15> crossing{};
    if (outcome == BlockBuilder::Outcome::Crossing) {
        uint64_t next = (rip & k_page_mask) + k_page_size;
        if (key.code_bits == 32) next &= 0xFFFF'FFFF;
        uint64_t second = 0;
        std::byte* second_host = nullptr;
        if (FetchEntry const* found = translate_page(next, key.user)) {
            second = found->gpa_page;
            second_host = m_memory.host_page(second, writable);
        } else {
            fault = true;
        }
        if (second_host) {
            bool second_first = !m_memory.has_code(second);
            m_memory.count_code(second, 1);
            if (second_first) flush_tlb_writes_to(m_frame.cpu, second);
            size_t have = std::min(source.first_page.size(), crossing.size());
            std::memcpy(crossing.data(), source.first_page.data(), have);
            std::memcpy(crossing.data() + have, second_host, crossing.size() - have);
            source.crossing = crossing;
            block.second_page = second;
            outcome = m_builder.build(source, target, block);
        }
    }
    if (outcome != BlockBuilder::Outcome::Built) {
        if (outcome == BlockBuilder::Outcome::TooLong) {
            m_frame.cpu.fault = Fault{.vector = Vector::GP, .has_error = true};
            fault = true;
        }
        m_memory.count_code(gpa_page, -1);
        if (block.second_page != k_no_page) m_memory.count_code(block.second_page, -1);
        m_blocks.pop_back();
        return nullptr;
    }
    if (auto refused = verify_block(m_builder.code(), key.user, m_builder.sites())) reject(m_builder.code(), *refused);
    std::memcpy(m_code.writable() + m_used, m_builder.code().data(), m_builder.code().size());
    m_used += (block.code_size + 15) & ~15U;
    block.first_mark = static_cast<uint32_t>(m_marks.size());
    block.mark_count = static_cast<uint16_t>(m_builder.marks().size());
    m_marks.insert(m_marks.end(), m_builder.marks().begin(), m_builder.marks().end());
    block.global = fetched.global;
    Block*& head = bucket(gpa, rip, key);
    block.next = head;
    head = &block;
    m_pages[gpa_page].push_back(&block);
    if (block.second_page != k_no_page) m_pages[block.second_page].push_back(&block);
    ++m_counters.blocks;
    m_counters.instructions += block.instructions;
    return &block;
}

void CodeCache::flush_all() noexcept {
    ++m_counters.flushes;
    for (auto const& [page, blocks] : m_pages) m_memory.count_code(page, -static_cast<int>(blocks.size()));
    m_pages.clear();
    m_index.assign(k_buckets, nullptr);
    m_cross_links.clear();
    m_global_links.clear();
    m_blocks.clear();
    m_sites.clear();
    m_marks.clear();
    // Empty jump entries lead to an exit like a miss.
    Site& miss = m_sites.emplace_back();
    miss.kind = SiteKind::Indirect;
    Emitter e(m_code.writable(), k_reserved_code);
    e.bytes(0x49, 0xBF);                        // mov r15, site
    e.qword(reinterpret_cast<uint64_t>(&miss)); // SAFETY: handed back in Frame::site
    e.jump_state(offset::exit);
    m_used = k_reserved_code;
    clear_jumps();
}

// ---- Links ----

void CodeCache::set_rel32(uint32_t patch, uint32_t target) noexcept {
    uint32_t value = target - patch - 4;
    std::memcpy(m_code.writable() + patch, &value, 4);
}

void CodeCache::link(Site& site, Block& target) {
    if (site.block->dead || target.dead || !(site.block->key == target.key)) return;
    if (site.target != &target) {
        if (site.target) forget_incoming(site);
        site.target = &target;
        site.next_incoming = target.incoming;
        target.incoming = &site;
    }
    set_rel32(site.patch, target.code);
    ++m_counters.links;
    if (!site.cross_page && target.second_page == k_no_page) return;
    bool global = target.global && target.second_page == k_no_page;
    (global ? m_global_links : m_cross_links).push_back(&site);
}

// Takes the site out of its target's list.
void CodeCache::forget_incoming(Site& site) noexcept {
    for (Site** at = &site.target->incoming; *at; at = &(*at)->next_incoming) {
        if (*at != &site) continue;
        *at = site.next_incoming;
        break;
    }
    site.target = nullptr;
}

void CodeCache::unlink(Site& site) noexcept {
    set_rel32(site.patch, site.stub);
}

void CodeCache::insert_jump(Block const& block) {
    size_t privilege = block.key.user ? 1 : 0;
    if (!block.key.user && !block.global) m_local_jumps = true;
    uint64_t salt = m_salt_generation[privilege] << 48;
    JumpEntry& jump = m_frame.jumps[block.rip % k_jump_entries];
    jump.tag = 0 - (block.rip + salt);
    jump.code = reinterpret_cast<uint64_t>(entry(block)); // SAFETY: jumped to by emitted code
}

void CodeCache::clear_jumps() noexcept {
    auto miss = reinterpret_cast<uint64_t>(m_code.executable()); // SAFETY: jumped to by emitted code
    for (JumpEntry& entry : m_frame.jumps) entry = JumpEntry{k_empty_tag, miss};
}

void CodeCache::new_generation(size_t privilege) noexcept {
    if (++m_salt_generation[privilege] > 0x7FFE) {
        m_salt_generation[privilege] = 1;
        clear_jumps();
    }
    m_frame.salt[privilege].store(m_salt_generation[privilege] << 48);
}

void CodeCache::restore_salts() noexcept {
    for (size_t privilege = 0; privilege < 2; ++privilege)
        if (m_frame.salt[privilege].load(std::memory_order_relaxed) == k_salt_poison)
            m_frame.salt[privilege].store(m_salt_generation[privilege] << 48);
}

void CodeCache::enter_mode(ModeKey key) noexcept {
    size_t privilege = key.user ? 1 : 0;
    if (m_salt_mode[privilege] == key) return;
    m_salt_mode[privilege] = key;
    new_generation(privilege);
}

void CodeCache::translation_changed(bool globals_too) noexcept {
    ++m_fetch_generation;
    new_generation(1);
    for (Site* site : m_cross_links) unlink(*site);
    m_cross_links.clear();
    m_fetched[0] = {};
    if (globals_too || m_local_jumps) {
        new_generation(0);
        m_local_jumps = false;
    }
    if (!globals_too) return;
    m_fetched[1] = {};
    for (Site* site : m_global_links) unlink(*site);
    m_global_links.clear();
}

void CodeCache::translation_changed_at(uint64_t linear) noexcept {
    if (m_fetched[upper_half(linear) ? 1 : 0].holds(linear)) translation_changed(upper_half(linear));
}

// ---- Changed code ----

void CodeCache::drop(Block& block) noexcept {
    block.dead = true;
    m_code_changed = true;
    ++m_counters.invalidations;
    for (Block** at = &bucket(block.gpa, block.rip, block.key); *at; at = &(*at)->next) {
        if (*at != &block) continue;
        *at = block.next;
        break;
    }
    while (Site* site = block.incoming) {
        block.incoming = site->next_incoming;
        unlink(*site);
        site->target = nullptr;
    }
    JumpEntry& jump = m_frame.jumps[block.rip % k_jump_entries];
    if (jump.code == reinterpret_cast<uint64_t>(entry(block))) // SAFETY: compared
        jump = JumpEntry{k_empty_tag, reinterpret_cast<uint64_t>(m_code.executable())};
    for (uint64_t page : {block.gpa & k_page_mask, block.second_page}) {
        if (page == k_no_page) continue;
        auto it = m_pages.find(page);
        if (it == m_pages.end()) continue;
        std::erase(it->second, &block);
        m_memory.count_code(page, -1);
        if (it->second.empty()) m_pages.erase(it);
    }
}

void CodeCache::code_written(uint64_t gpa, size_t size) noexcept {
    if (size == 0) return;
    uint64_t last = gpa + size - 1;
    if (size / k_page_size > m_pages.size()) {
        // Rather look at what there is.
        std::vector<Block*> hit;
        for (auto const& [page, blocks] : m_pages)
            if (page + k_page_size - 1 >= gpa && page <= last) hit.insert(hit.end(), blocks.begin(), blocks.end());
        for (Block* block : hit)
            if (!block->dead) drop(*block);
        return;
    }
    for (uint64_t page = gpa & k_page_mask;; page += k_page_size) {
        auto it = m_pages.find(page);
        if (it != m_pages.end()) {
            std::vector<Block*> hit;
            for (Block* block : it->second) {
                // The part of the block in this page.
                bool in_second = block->second_page == page && (block->gpa & k_page_mask) != page;
                uint64_t first_byte = in_second ? page : block->gpa;
                uint64_t last_byte = block->gpa + block->guest_size - 1;
                uint64_t page_end = (block->gpa & k_page_mask) + k_page_size - 1;
                if (in_second)
                    last_byte = page + (block->gpa + block->guest_size - 1 - page_end) - 1;
                else
                    last_byte = std::min(last_byte, page_end);
                if (first_byte <= last && gpa <= last_byte) hit.push_back(block);
            }
            for (Block* block : hit) drop(*block);
        }
        if (page == (last & k_page_mask)) break;
    }
}

void CodeCache::memory_written(uint64_t gpa, size_t size) noexcept {
    bool any = false;
    for (uint64_t page = gpa & k_page_mask; page <= gpa + size - 1 && !any; page += k_page_size)
        any = m_memory.has_code(page);
    if (any) memory_replaced(gpa, size);
}

void CodeCache::memory_replaced(uint64_t gpa, size_t size) noexcept {
    {
        std::lock_guard lock(m_stale_mutex);
        if (m_stale.size() < k_stale_limit)
            m_stale.emplace_back(gpa, size);
        else
            m_stale.assign(1, {0, ~0ULL}); // too many to list: everything
    }
    m_frame.cpu.attention.fetch_or(k_attention_stale_code);
    for (auto& salt : m_frame.salt) salt.store(k_salt_poison);
}

void CodeCache::process_stale() noexcept {
    std::vector<std::pair<uint64_t, uint64_t>> stale;
    {
        std::lock_guard lock(m_stale_mutex);
        stale.swap(m_stale);
    }
    for (auto const& [gpa, size] : stale) {
        if (size == ~0ULL) {
            flush_all();
            m_code_changed = true;
            return;
        }
        code_written(gpa, size);
    }
}

CodeCache::Origin CodeCache::origin_of(uintptr_t host) const noexcept {
    auto at = static_cast<uint32_t>(host - reinterpret_cast<uintptr_t>(m_code.executable())); // SAFETY: subtracted
    auto it = std::upper_bound(m_blocks.begin(), m_blocks.end(), at,
                               [](uint32_t value, Block const& block) { return value < block.code; });
    if (it == m_blocks.begin()) return {};
    Block const& block = *--it;
    for (InsnMark const& mark : std::span(m_marks).subspan(block.first_mark, block.mark_count))
        if (at - block.code >= mark.begin && at - block.code < mark.end) return {const_cast<Block*>(&block), mark};
    return {};
}

void translation_changed(Cpu& cpu, bool globals_too) noexcept {
    if (cpu.translator) static_cast<CodeCache*>(cpu.translator)->translation_changed(globals_too);
}

void translation_changed_at(Cpu& cpu, uint64_t linear) noexcept {
    if (cpu.translator) static_cast<CodeCache*>(cpu.translator)->translation_changed_at(linear);
}

} // namespace coffer::vmm::soft
