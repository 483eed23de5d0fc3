#include "vmm/disk/disk_journal.hpp"

#include <algorithm>

namespace coffer::vmm {

namespace spec = disk_spec;
using spec::journal::Kind;

namespace {

bool has_block(Kind kind, JournalEntry const& entry) noexcept {
    return kind != Kind::Units || entry.tag().written();
}

bool names_something(Kind kind, JournalEntry const& entry, spec::Layout const& layout) noexcept {
    if (kind == Kind::Units) return entry.number < layout.units();
    if ((entry.number & spec::journal::k_table_block) != 0)
        return (entry.number & ~spec::journal::k_table_block) < layout.table_blocks();
    return entry.number < layout.tag_blocks();
}

} // namespace

uint64_t JournalTransaction::blocks() const noexcept {
    return static_cast<uint64_t>(
        std::count_if(entries.begin(), entries.end(), [this](auto const& e) { return has_block(kind, e); }));
}

std::optional<uint64_t> journal_descriptor_size(Bytes first_block) {
    if (first_block.size() < spec::journal::k_entries_at ||
        !std::equal(spec::journal::k_magic.begin(), spec::journal::k_magic.end(), first_block.begin()))
        return std::nullopt;
    auto count = load_le<uint32_t>(first_block, spec::journal::k_count_at);
    if (count > spec::journal::k_max_entries) return std::nullopt;
    return spec::journal::descriptor_size(count);
}

std::optional<JournalTransaction> parse_journal_descriptor(Bytes descriptor, spec::Layout const& layout) {
    auto size = journal_descriptor_size(descriptor);
    if (!size || descriptor.size() != *size) return std::nullopt;
    JournalTransaction transaction;
    auto kind = load_le<uint32_t>(descriptor, spec::journal::k_kind_at);
    if (kind < static_cast<uint32_t>(Kind::Units) || kind > static_cast<uint32_t>(Kind::Last)) return std::nullopt;
    transaction.kind = static_cast<Kind>(kind);
    transaction.epoch = load_le<uint64_t>(descriptor, spec::journal::k_epoch_at);
    transaction.number = load_le<uint64_t>(descriptor, spec::journal::k_number_at);
    transaction.generation = load_le<uint64_t>(descriptor, spec::journal::k_generation_at);
    std::copy_n(descriptor.begin() + spec::journal::k_root_at, transaction.root.size(), transaction.root.begin());
    std::copy_n(descriptor.begin() + spec::journal::k_mac_value_at, transaction.mac.size(), transaction.mac.begin());
    auto count = load_le<uint32_t>(descriptor, spec::journal::k_count_at);
    for (uint32_t i = 0; i < count; ++i) {
        Bytes raw = descriptor.subspan(spec::journal::k_entries_at + i * spec::journal::k_entry_size,
                                       spec::journal::k_entry_size);
        JournalEntry entry;
        entry.number = load_le<uint64_t>(raw, 0);
        std::copy_n(raw.begin() + 8, entry.value.size(), entry.value.begin());
        if (!names_something(transaction.kind, entry, layout)) return std::nullopt;
        transaction.entries.push_back(entry);
    }
    return transaction;
}

MutBytes JournalBuffer::block(uint64_t index) {
    return MutBytes(m_bytes).subspan(
        spec::journal::descriptor_size(spec::journal::k_max_entries) + index * spec::k_unit_size, spec::k_unit_size);
}

void JournalBuffer::add(JournalEntry const& entry, bool with_block) {
    COFFER_ASSERT(!full());
    m_entries.push_back(entry);
    if (with_block) ++m_blocks;
}

void JournalBuffer::clear() noexcept {
    m_entries.clear();
    m_blocks = 0;
}

Result<crypto::Digest> Journal::mac_of(Bytes descriptor, uint64_t entries) {
    return m_seal.mac(spec::MacDomain::Journal, m_position.mac, descriptor.first(spec::journal::k_mac_value_at),
                      descriptor.subspan(spec::journal::k_entries_at, entries * spec::journal::k_entry_size));
}

uint64_t Journal::next_blocks_at(JournalBuffer const& buffer) const noexcept {
    return m_layout.journal_at() + m_position.end + spec::journal::descriptor_size(buffer.entries());
}

Result<void> Journal::append(Kind kind, JournalBuffer& buffer, uint64_t generation, crypto::Digest const& root) {
    uint64_t const head = spec::journal::descriptor_size(buffer.entries());
    uint64_t const size = head + buffer.blocks() * spec::k_unit_size;
    COFFER_ASSERT(size <= m_layout.journal_size - m_position.end);
    uint64_t const start = spec::journal::descriptor_size(spec::journal::k_max_entries) - head;
    MutBytes const descriptor = MutBytes(buffer.m_bytes).subspan(start, head);
    std::ranges::fill(descriptor, std::byte{0});
    std::ranges::copy(spec::journal::k_magic, descriptor.begin());
    store_le<uint64_t>(descriptor, spec::journal::k_epoch_at, m_position.epoch);
    store_le<uint64_t>(descriptor, spec::journal::k_number_at, m_position.number);
    store_le<uint32_t>(descriptor, spec::journal::k_kind_at, static_cast<uint32_t>(kind));
    store_le<uint32_t>(descriptor, spec::journal::k_count_at, static_cast<uint32_t>(buffer.entries()));
    store_le<uint64_t>(descriptor, spec::journal::k_generation_at, generation);
    std::ranges::copy(root, descriptor.begin() + spec::journal::k_root_at);
    size_t at = spec::journal::k_entries_at;
    for (auto const& entry : buffer.m_entries) {
        store_le<uint64_t>(descriptor, at, entry.number);
        std::ranges::copy(entry.value, descriptor.begin() + static_cast<std::ptrdiff_t>(at + 8));
        at += spec::journal::k_entry_size;
    }
    auto mac = TRY(mac_of(descriptor, buffer.entries()));
    std::ranges::copy(mac, descriptor.begin() + spec::journal::k_mac_value_at);
    TRY(m_file.write(m_layout.journal_at() + m_position.end, Bytes(buffer.m_bytes).subspan(start, size)));
    m_position.end += size;
    ++m_position.number;
    m_position.mac = mac;
    buffer.clear();
    return {};
}

Result<bool> Journal::blocks_authentic(JournalTransaction const& transaction, Bytes blocks) {
    for (auto const& entry : transaction.entries) {
        if (!has_block(transaction.kind, entry)) continue;
        Bytes block = blocks.first(spec::k_unit_size);
        blocks = blocks.subspan(spec::k_unit_size);
        if (transaction.kind == Kind::Units) {
            if (!TRY(m_seal.matches(entry.tag(), entry.number, block))) return false;
            continue;
        }
        bool const table = (entry.number & spec::journal::k_table_block) != 0;
        auto mac = TRY(m_seal.block_mac(table ? spec::MacDomain::TableBlock : spec::MacDomain::TagBlock,
                                        entry.number & ~spec::journal::k_table_block, block));
        if (!crypto::equal_in_constant_time(mac, entry.value)) return false;
    }
    return true;
}

Result<std::optional<Journal::Found>> Journal::next() {
    std::optional<Found> none;
    uint64_t const room = m_layout.journal_size - m_position.end;
    if (room < spec::k_unit_size) return none;
    uint64_t const at = m_layout.journal_at() + m_position.end;
    ByteVector bytes(spec::k_unit_size);
    TRY(m_file.read(at, bytes));
    auto head = journal_descriptor_size(bytes);
    if (!head || *head > room) return none;
    bytes.resize(*head);
    TRY(m_file.read(at, bytes));
    auto transaction = parse_journal_descriptor(bytes, m_layout);
    if (!transaction || transaction->epoch != m_position.epoch || transaction->number != m_position.number ||
        transaction->size() > room)
        return none;
    if (!crypto::equal_in_constant_time(TRY(mac_of(bytes, transaction->entries.size())), transaction->mac)) return none;
    ByteVector blocks(transaction->blocks() * spec::k_unit_size);
    TRY(m_file.read(at + *head, blocks));
    // Torn: the descriptor reached the disk and a block did not.
    if (!TRY(blocks_authentic(*transaction, blocks))) return none;
    m_position.end += transaction->size();
    ++m_position.number;
    m_position.mac = transaction->mac;
    return std::optional(Found{std::move(*transaction), at + *head});
}

} // namespace coffer::vmm
