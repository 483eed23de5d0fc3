#include "vmm/disk/authenticated_disk.hpp"

#include <algorithm>

#include "base/log.hpp"
#include "vmm/home/home_errors.hpp"

namespace coffer::vmm {

namespace spec = disk_spec;
using spec::journal::Kind;

namespace {

constexpr uint64_t k_buffer_units = 256;
// Deallocated units take no room in the journal's blocks; this bounds the memory that they take.
constexpr size_t k_max_slots = 65536;

constexpr uint64_t checkpoint_size(uint64_t blocks) noexcept {
    uint64_t const parts = (blocks + spec::journal::k_max_entries - 1) / spec::journal::k_max_entries;
    return parts * spec::journal::descriptor_size(spec::journal::k_max_entries) + blocks * spec::k_unit_size;
}

} // namespace

AuthenticatedDisk::AuthenticatedDisk(std::filesystem::path path, std::unique_ptr<devices::BlockBackend> file,
                                     DiskSeal seal, DiskHeader header)
    : EncryptedDisk(std::move(path), std::move(file), std::move(seal), header),
      m_tags(m_header.layout, m_seal, *m_file, m_path), m_journal(m_header.layout, m_seal, *m_file),
      m_buffer(k_buffer_units * spec::k_unit_size), m_scratch(spec::k_unit_size) {}

Result<std::unique_ptr<AuthenticatedDisk>> AuthenticatedDisk::open(std::filesystem::path path,
                                                                   std::unique_ptr<devices::BlockBackend> file,
                                                                   DiskSeal seal, DiskHeader header) {
    auto disk = std::unique_ptr<AuthenticatedDisk>(
        new AuthenticatedDisk(std::move(path), std::move(file), std::move(seal), header));
    TRY(disk->recover());
    disk->m_recovered = true;
    return disk;
}

AuthenticatedDisk::~AuthenticatedDisk() {
    // What could not be recovered stays as it is.
    if (!m_recovered || read_only() || m_failed) return;
    if (auto closed = close(); !closed) log::warning("{}", closed.error().message());
}

// --- recovery ---

Result<void> AuthenticatedDisk::recover() {
    m_journal.restart(m_header.epoch);
    Images images;
    bool complete = false;
    while (!complete) {
        auto found = TRY(m_journal.next());
        if (!found) break;
        auto const& transaction = found->transaction;
        m_header.generation = std::max(m_header.generation, transaction.generation);
        uint64_t at = found->blocks_at;
        for (auto const& entry : transaction.entries) {
            if (transaction.kind == Kind::Units) {
                m_slots[entry.number] = {entry.tag(), at, false};
                if (entry.tag().written()) at += spec::k_unit_size;
                continue;
            }
            bool const table = (entry.number & spec::journal::k_table_block) != 0;
            (table ? images.table_blocks : images.tag_blocks)[entry.number & ~spec::journal::k_table_block] = at;
            at += spec::k_unit_size;
        }
        complete = transaction.kind == Kind::Last;
        if (complete) images.root = transaction.root;
    }
    if (read_only()) {
        if (m_journal.used() != 0)
            return make_error(ErrorCode::InvalidArgument,
                              "{} was not closed, and cannot be recovered while it is read-only", m_path.native());
        return m_tags.load(m_header.root);
    }
    if (complete) return redo(images);
    TRY(m_tags.load(m_header.root));
    // Also with nothing to move: the next epoch ends what may lie behind the journal's end.
    return checkpoint();
}

// The checkpoint is whole in the journal, and may be in part in its place.
Result<void> AuthenticatedDisk::redo(Images const& images) {
    TRY(write_units_in_place());
    auto copy = [this](std::map<uint64_t, uint64_t> const& blocks, uint64_t to) -> Result<void> {
        for (auto const& [index, at] : blocks) {
            TRY(m_file->read(at, m_scratch));
            TRY(m_file->write(to + index * spec::k_unit_size, m_scratch));
        }
        return {};
    };
    TRY(copy(images.tag_blocks, m_header.layout.tags_at()));
    TRY(copy(images.table_blocks, m_header.layout.table_at()));
    m_unsynced = true;
    TRY(sync());
    TRY(write_header(images.root));
    m_slots.clear();
    m_journal.restart(m_header.epoch);
    return m_tags.load(m_header.root);
}

// --- reading ---

Result<void> AuthenticatedDisk::open_unit(uint64_t unit, TagEntry const& tag, Bytes ciphertext, MutBytes to) {
    if (!TRY(m_seal.matches(tag, unit, ciphertext)))
        return damaged(m_path, fmt::format("data unit {} (bytes {} to {} of the disk) fails authentication", unit,
                                           unit * spec::k_unit_size, (unit + 1) * spec::k_unit_size - 1));
    return m_seal.decrypt(unit, ciphertext, to);
}

// Units from the first on that are in their place, at most `count` and what the buffer holds.
Result<uint64_t> AuthenticatedDisk::read_in_place(uint64_t first, uint64_t count, MutBytes to) {
    count = std::min(count, k_buffer_units);
    if (auto next = m_slots.lower_bound(first); next != m_slots.end()) count = std::min(count, next->first - first);
    // Holes are not read: they are most of a new disk.
    auto units = MutBytes(m_buffer).first(count * spec::k_unit_size);
    bool have = false;
    for (uint64_t i = 0; i < count; ++i) {
        auto const tag = TRY(m_tags.entry(first + i));
        MutBytes const plain = to.subspan(i * spec::k_unit_size, spec::k_unit_size);
        if (!tag.written()) {
            std::ranges::fill(plain, std::byte{0});
            continue;
        }
        if (!have) TRY(m_file->read(m_header.layout.data_at() + first * spec::k_unit_size, units));
        have = true;
        TRY(open_unit(first + i, tag, units.subspan(i * spec::k_unit_size, spec::k_unit_size), plain));
    }
    return count;
}

Result<void> AuthenticatedDisk::read_units(uint64_t first, uint64_t count, MutBytes to) {
    while (count > 0) {
        uint64_t done = 1;
        MutBytes const plain = to.first(spec::k_unit_size);
        auto slot = m_slots.find(first);
        if (slot == m_slots.end()) {
            done = TRY(read_in_place(first, count, to));
        } else if (!slot->second.tag.written()) {
            std::ranges::fill(plain, std::byte{0});
        } else if (slot->second.pending) {
            TRY(m_seal.decrypt(first, m_pending.block(slot->second.at), plain));
        } else {
            auto ciphertext = MutBytes(m_buffer).first(spec::k_unit_size);
            TRY(m_file->read(slot->second.at, ciphertext));
            TRY(open_unit(first, slot->second.tag, ciphertext, plain));
        }
        first += done;
        count -= done;
        to = to.subspan(done * spec::k_unit_size);
    }
    return {};
}

Result<void> AuthenticatedDisk::read(uint64_t offset, MutBytes to) {
    COFFER_ASSERT(offset <= size() && to.size() <= size() - offset);
    std::lock_guard lock(m_mutex);
    while (!to.empty()) {
        uint64_t const skip = offset % spec::k_unit_size;
        uint64_t piece = align_down(to.size(), spec::k_unit_size);
        if (skip == 0 && piece > 0) {
            TRY(read_units(offset / spec::k_unit_size, piece / spec::k_unit_size, to.first(piece)));
        } else {
            piece = std::min<uint64_t>(to.size(), spec::k_unit_size - skip);
            TRY(read_units(offset / spec::k_unit_size, 1, m_scratch));
            std::ranges::copy(Bytes(m_scratch).subspan(skip, piece), to.begin());
        }
        to = to.subspan(piece);
        offset += piece;
    }
    return {};
}

// --- writing ---

Result<void> AuthenticatedDisk::check_writable() const {
    if (!m_failed) return {};
    return make_error(
        ErrorCode::Io,
        "{}: the host failed to make earlier writes durable, so that no more are taken; see to the host's "
        "disk and start the VM again",
        m_path.native());
}

// So that one more entry fits into m_pending, and a checkpoint of everything into the journal behind it.
Result<void> AuthenticatedDisk::make_room(uint64_t unit) {
    TRY(check_writable());
    if (m_checkpoint) TRY(checkpoint());
    if (m_pending.full()) TRY(append_pending());
    uint64_t const tag_block = unit / spec::k_tags_in_block;
    uint64_t const table_block = tag_block / spec::k_macs_in_block;
    uint64_t const blocks = m_touched.size() + m_touched_table.size() + 2;
    uint64_t const needed = m_journal.used() + spec::journal::descriptor_size(m_pending.entries() + 1) +
                            (m_pending.blocks() + 1) * spec::k_unit_size + checkpoint_size(blocks);
    if (needed > m_header.layout.journal_size || m_slots.size() >= k_max_slots) TRY(checkpoint());
    m_touched.insert(tag_block);
    m_touched_table.insert(table_block);
    return {};
}

Result<void> AuthenticatedDisk::put(uint64_t unit, Bytes plain) {
    auto slot = m_slots.find(unit);
    // A pending deallocation has no block that could take the content.
    if (slot != m_slots.end() && slot->second.pending && !slot->second.tag.written()) TRY(append_pending());
    TRY(make_room(unit));
    slot = m_slots.find(unit);
    bool const again = slot != m_slots.end() && slot->second.pending;
    uint64_t const block = again ? slot->second.at : m_pending.blocks();
    MutBytes const ciphertext = m_pending.block(block);
    TRY(m_seal.encrypt(unit, plain, ciphertext));
    auto const tag = TRY(m_seal.tag(unit, m_header.generation, ciphertext));
    ++m_header.generation;
    JournalEntry entry{.number = unit};
    tag.store(entry.value, 0);
    if (again) {
        for (uint64_t i = 0; i < m_pending.entries(); ++i)
            if (m_pending.entry(i).number == unit) m_pending.entry(i) = entry;
    } else {
        m_pending.add(entry, true);
    }
    m_slots[unit] = {tag, block, true};
    return {};
}

Result<void> AuthenticatedDisk::put_zeroes(uint64_t unit) {
    auto slot = m_slots.find(unit);
    bool const written = slot != m_slots.end() ? slot->second.tag.written() : TRY(m_tags.entry(unit)).written();
    if (!written) return {};
    if (slot != m_slots.end() && slot->second.pending) TRY(append_pending());
    TRY(make_room(unit));
    m_pending.add({.number = unit}, false);
    m_slots[unit] = {{}, 0, true};
    return {};
}

Result<void> AuthenticatedDisk::append_pending() {
    if (m_pending.empty()) return {};
    uint64_t at = m_journal.next_blocks_at(m_pending);
    // Before the buffer is emptied.
    std::vector<std::pair<uint64_t, uint64_t>> places;
    places.reserve(m_pending.entries());
    for (uint64_t i = 0; i < m_pending.entries(); ++i) {
        auto const& entry = m_pending.entry(i);
        places.emplace_back(entry.number, at);
        if (entry.tag().written()) at += spec::k_unit_size;
    }
    TRY(m_journal.append(Kind::Units, m_pending, m_header.generation));
    m_unsynced = true;
    for (auto const& [unit, place] : places) {
        auto& slot = m_slots.at(unit);
        slot.at = place;
        slot.pending = false;
    }
    return {};
}

Result<void> AuthenticatedDisk::write(uint64_t offset, Bytes from) {
    COFFER_ASSERT(!read_only() && offset <= size() && from.size() <= size() - offset);
    std::lock_guard lock(m_mutex);
    return write_units(offset, from);
}

Result<void> AuthenticatedDisk::write_units(uint64_t offset, Bytes from) {
    while (!from.empty()) {
        uint64_t const unit = offset / spec::k_unit_size;
        uint64_t const skip = offset % spec::k_unit_size;
        uint64_t const piece = std::min<uint64_t>(from.size(), spec::k_unit_size - skip);
        if (piece == spec::k_unit_size) {
            TRY(put(unit, from.first(piece)));
        } else {
            TRY(read_units(unit, 1, m_scratch));
            std::ranges::copy(from.first(piece), m_scratch.begin() + static_cast<std::ptrdiff_t>(skip));
            TRY(put(unit, m_scratch));
        }
        from = from.subspan(piece);
        offset += piece;
    }
    return {};
}

Result<void> AuthenticatedDisk::deallocate(uint64_t offset, uint64_t size, bool edges) {
    uint64_t const end = offset + size;
    while (offset < end) {
        uint64_t const unit = offset / spec::k_unit_size;
        uint64_t const skip = offset % spec::k_unit_size;
        uint64_t const piece = std::min(end - offset, spec::k_unit_size - skip);
        uint64_t const block_end = (unit / spec::k_tags_in_block + 1) * spec::k_tags_in_block;
        if (m_tags.unwritten(unit / spec::k_tags_in_block) &&
            (m_slots.lower_bound(unit) == m_slots.end() || m_slots.lower_bound(unit)->first >= block_end)) {
            offset = block_end * spec::k_unit_size;
            continue;
        }
        if (skip == 0 && (piece == spec::k_unit_size || offset + piece == EncryptedDisk::size()))
            TRY(put_zeroes(unit));
        else if (edges)
            TRY(write_units(offset, ByteVector(piece)));
        offset += piece;
    }
    return {};
}

Result<void> AuthenticatedDisk::write_zeroes(uint64_t offset, uint64_t size) {
    COFFER_ASSERT(!read_only() && offset <= EncryptedDisk::size() && size <= EncryptedDisk::size() - offset);
    std::lock_guard lock(m_mutex);
    return deallocate(offset, size, true);
}

Result<void> AuthenticatedDisk::discard(uint64_t offset, uint64_t size) {
    COFFER_ASSERT(!read_only() && offset <= EncryptedDisk::size() && size <= EncryptedDisk::size() - offset);
    std::lock_guard lock(m_mutex);
    return deallocate(offset, size, false);
}

// --- durability ---

Result<void> AuthenticatedDisk::sync() {
    TRY(check_writable());
    if (!m_unsynced) return {};
    auto flushed = m_file->flush();
    if (!flushed) {
        m_failed = true;
        return flushed;
    }
    m_unsynced = false;
    return {};
}

Result<void> AuthenticatedDisk::flush() {
    if (read_only()) return {};
    std::lock_guard lock(m_mutex);
    TRY(append_pending());
    return sync();
}

// Several transactions, the last of which makes them one.
Result<void> AuthenticatedDisk::append_checkpoint(DiskTags::Change const& change) {
    auto const start = m_journal.position();
    uint64_t left = change.tag_blocks.size() + change.table_blocks.size();
    auto append = [&]() -> Result<void> {
        JournalBuffer buffer;
        auto add = [&](uint64_t number, DiskTags::Block const& block) -> Result<void> {
            std::ranges::copy(block.content, buffer.next_block().begin());
            buffer.add({number, block.mac}, true);
            if (--left > 0 && buffer.full()) return m_journal.append(Kind::Checkpoint, buffer, m_header.generation);
            return {};
        };
        for (auto const& [index, block] : change.tag_blocks) TRY(add(index, block));
        for (auto const& [index, block] : change.table_blocks) TRY(add(index | spec::journal::k_table_block, block));
        return m_journal.append(Kind::Last, buffer, m_header.generation, change.root);
    };
    auto appended = append();
    if (!appended) m_journal.go_back(start);
    return appended;
}

Result<void> AuthenticatedDisk::write_units_in_place() {
    auto const at = [this](uint64_t unit) { return m_header.layout.data_at() + unit * spec::k_unit_size; };
    for (auto slot = m_slots.begin(); slot != m_slots.end();) {
        uint64_t const first = slot->first;
        bool const written = slot->second.tag.written();
        uint64_t const from = slot->second.at;
        uint64_t count = 0;
        // Neighbours that come from neighbouring blocks go together.
        while (slot != m_slots.end() && slot->first == first + count && slot->second.tag.written() == written &&
               (!written || (count < k_buffer_units && slot->second.at == from + count * spec::k_unit_size))) {
            ++slot;
            ++count;
        }
        if (!written) {
            TRY(m_file->discard(at(first), count * spec::k_unit_size));
            continue;
        }
        MutBytes const units = MutBytes(m_buffer).first(count * spec::k_unit_size);
        TRY(m_file->read(from, units));
        TRY(m_file->write(at(first), units));
    }
    return {};
}

// In the slot that does not hold the newest, so that there is one at any time.
Result<void> AuthenticatedDisk::write_header(crypto::Digest const& root) {
    auto next = m_header;
    ++next.epoch;
    next.root = root;
    auto bytes = TRY(seal_disk_header(next, m_seal));
    m_unsynced = true;
    TRY(m_file->write(next.epoch % spec::k_header_slots * spec::k_header_size, bytes));
    TRY(sync());
    // All that changes: other threads ask for the size.
    m_header.epoch = next.epoch;
    m_header.root = next.root;
    return {};
}

Result<void> AuthenticatedDisk::checkpoint() {
    TRY(check_writable());
    if (!m_checkpoint) {
        TRY(append_pending());
        std::map<uint64_t, TagEntry> entries;
        for (auto const& [unit, slot] : m_slots) entries.emplace_hint(entries.end(), unit, slot.tag);
        auto change = TRY(m_tags.prepare(entries));
        if (!entries.empty()) TRY(append_checkpoint(change));
        m_unsynced = m_unsynced || !entries.empty();
        m_checkpoint = std::move(change);
    }
    // From here on a failure leaves m_checkpoint, and all of this is done again.
    TRY(sync());
    TRY(write_units_in_place());
    auto write = [this](std::map<uint64_t, DiskTags::Block> const& blocks, uint64_t to) -> Result<void> {
        for (auto const& [index, block] : blocks) TRY(m_file->write(to + index * spec::k_unit_size, block.content));
        return {};
    };
    TRY(write(m_checkpoint->tag_blocks, m_header.layout.tags_at()));
    TRY(write(m_checkpoint->table_blocks, m_header.layout.table_at()));
    m_unsynced = m_unsynced || !m_slots.empty();
    TRY(sync());
    TRY(write_header(m_checkpoint->root));
    m_tags.adopt(std::move(*m_checkpoint));
    m_checkpoint.reset();
    m_slots.clear();
    m_touched.clear();
    m_touched_table.clear();
    m_journal.restart(m_header.epoch);
    return {};
}

Result<void> AuthenticatedDisk::close() {
    if (read_only()) return {};
    std::lock_guard lock(m_mutex);
    TRY(append_pending());
    if (m_slots.empty() && !m_checkpoint) return sync();
    return checkpoint();
}

} // namespace coffer::vmm
