#include "vmm/disk/disk_tags.hpp"

#include <algorithm>

#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace spec = disk_spec;
using crypto::Digest;

namespace {
constexpr size_t k_cached_blocks = 4096; // 16 MiB, for 2 GiB of content
}

Result<Digest> DiskTags::root_of(DiskSeal& seal, std::vector<Digest> const& digests) {
    return seal.mac(spec::MacDomain::Root, std::as_bytes(std::span(digests)));
}

Result<Digest> DiskTags::empty_root(spec::Layout const& layout, DiskSeal& seal) {
    return root_of(seal, std::vector<Digest>(layout.table_blocks()));
}

Result<void> DiskTags::load(Digest const& root) {
    m_table.resize(m_layout.table_blocks() * spec::k_unit_size);
    TRY(m_file.read(m_layout.table_at(), m_table));
    m_digests.clear();
    for (uint64_t index = 0; index < m_layout.table_blocks(); ++index) {
        Bytes block = Bytes(m_table).subspan(index * spec::k_unit_size, spec::k_unit_size);
        m_digests.push_back(TRY(m_seal.block_mac(spec::MacDomain::TableBlock, index, block)));
    }
    if (!crypto::equal_in_constant_time(TRY(root_of(m_seal, m_digests)), root))
        return damaged(m_path, "the image's table of tags fails authentication");
    return {};
}

Digest DiskTags::expected_mac(uint64_t tag_block) const {
    Digest mac;
    std::memcpy(mac.data(), Bytes(m_table).subspan(tag_block * mac.size(), mac.size()).data(), mac.size());
    return mac;
}

bool DiskTags::unwritten(uint64_t tag_block) const {
    return expected_mac(tag_block) == Digest{};
}

void DiskTags::keep(uint64_t index, ByteVector content) {
    if (auto found = m_cache.find(index); found != m_cache.end()) {
        found->second.content = std::move(content);
        m_uses.splice(m_uses.begin(), m_uses, found->second.use);
        return;
    }
    if (m_cache.size() >= k_cached_blocks) {
        m_cache.erase(m_uses.back());
        m_uses.pop_back();
    }
    m_uses.push_front(index);
    m_cache.emplace(index, Cached{std::move(content), m_uses.begin()});
}

Result<ByteVector const*> DiskTags::tag_block(uint64_t index) {
    if (auto found = m_cache.find(index); found != m_cache.end()) {
        m_uses.splice(m_uses.begin(), m_uses, found->second.use);
        return &found->second.content;
    }
    ByteVector content(spec::k_unit_size);
    if (!unwritten(index)) {
        TRY(m_file.read(m_layout.tags_at() + index * spec::k_unit_size, content));
        auto mac = TRY(m_seal.block_mac(spec::MacDomain::TagBlock, index, content));
        if (!crypto::equal_in_constant_time(mac, expected_mac(index))) {
            uint64_t const first = index * spec::k_tags_in_block;
            return damaged(m_path, fmt::format("the tags of data units {} to {} fail authentication", first,
                                               first + spec::k_tags_in_block - 1));
        }
    }
    keep(index, std::move(content));
    return &m_cache.find(index)->second.content;
}

Result<TagEntry> DiskTags::entry(uint64_t unit) {
    auto const* block = TRY(tag_block(unit / spec::k_tags_in_block));
    return TagEntry::load(*block, unit % spec::k_tags_in_block * spec::k_tag_entry_size);
}

Result<DiskTags::Change> DiskTags::prepare(std::map<uint64_t, TagEntry> const& entries) {
    Change change;
    for (auto const& [unit, entry] : entries) {
        auto [at, fresh] = change.tag_blocks.try_emplace(unit / spec::k_tags_in_block);
        if (fresh) at->second.content = *TRY(tag_block(at->first));
        entry.store(at->second.content, unit % spec::k_tags_in_block * spec::k_tag_entry_size);
    }
    for (auto& [index, block] : change.tag_blocks) {
        block.mac = TRY(m_seal.block_mac(spec::MacDomain::TagBlock, index, block.content));
        auto [at, fresh] = change.table_blocks.try_emplace(index / spec::k_macs_in_block);
        if (fresh) {
            Bytes old = Bytes(m_table).subspan(at->first * spec::k_unit_size, spec::k_unit_size);
            at->second.content.assign(old.begin(), old.end());
        }
        std::ranges::copy(block.mac, at->second.content.begin() +
                                         static_cast<std::ptrdiff_t>(index % spec::k_macs_in_block * sizeof(Digest)));
    }
    auto digests = m_digests;
    for (auto& [index, block] : change.table_blocks) {
        block.mac = TRY(m_seal.block_mac(spec::MacDomain::TableBlock, index, block.content));
        digests[index] = block.mac;
    }
    change.root = TRY(root_of(m_seal, digests));
    return change;
}

void DiskTags::adopt(Change change) {
    for (auto& [index, block] : change.table_blocks) {
        std::ranges::copy(block.content, m_table.begin() + static_cast<std::ptrdiff_t>(index * spec::k_unit_size));
        m_digests[index] = block.mac;
    }
    for (auto& [index, block] : change.tag_blocks) keep(index, std::move(block.content));
}

} // namespace coffer::vmm
