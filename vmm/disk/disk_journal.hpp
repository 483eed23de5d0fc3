// The journal of an authenticated disk: transactions one behind the other from its start, each under a MAC that takes
// in the one before (docs/formats/disk.md, "Journal"). Private to vmm/disk.
#pragma once

#include <optional>
#include <vector>

#include "devices/core/backends.hpp"
#include "vmm/disk/disk_seal.hpp"

namespace coffer::vmm {

struct JournalEntry {
    uint64_t number = 0;                                        // unit, tag block or table block
    std::array<std::byte, disk_spec::k_tag_entry_size> value{}; // tag entry or MAC

    TagEntry tag() const { return TagEntry::load(value, 0); }
};

struct JournalTransaction {
    disk_spec::journal::Kind kind = disk_spec::journal::Kind::Units;
    uint64_t epoch = 0;
    uint64_t number = 0;
    uint64_t generation = 0; // of the next writing of a unit
    crypto::Digest root{};   // Kind::Last
    crypto::Digest mac{};
    std::vector<JournalEntry> entries;

    uint64_t descriptor_size() const noexcept { return disk_spec::journal::descriptor_size(entries.size()); }
    uint64_t blocks() const noexcept; // behind the descriptor
    uint64_t size() const noexcept { return descriptor_size() + blocks() * disk_spec::k_unit_size; }
};

// The size of a descriptor that begins with this block; nothing where none does.
std::optional<uint64_t> journal_descriptor_size(Bytes first_block);
// What a descriptor says, unauthenticated. Nothing where it is malformed or names what the disk does not have.
std::optional<JournalTransaction> parse_journal_descriptor(Bytes descriptor, disk_spec::Layout const& layout);

// A transaction in the making: blocks are encrypted straight into what goes to the file.
class JournalBuffer {
public:
    JournalBuffer() : m_bytes(disk_spec::journal::k_max_transaction) {}

    bool full() const noexcept { return m_entries.size() == disk_spec::journal::k_max_entries; }
    bool empty() const noexcept { return m_entries.empty(); }
    uint64_t entries() const noexcept { return m_entries.size(); }
    uint64_t blocks() const noexcept { return m_blocks; }
    MutBytes block(uint64_t index);
    MutBytes next_block() { return block(m_blocks); } // not counted before add()
    // With a block: next_block() is the entry's.
    void add(JournalEntry const& entry, bool with_block);
    JournalEntry& entry(uint64_t index) { return m_entries[index]; }
    void clear() noexcept;

private:
    friend class Journal;

    ByteVector m_bytes; // room for the largest descriptor, then blocks
    std::vector<JournalEntry> m_entries;
    uint64_t m_blocks = 0;
};

class Journal {
public:
    // References outlive the object.
    Journal(disk_spec::Layout const& layout, DiskSeal& seal, devices::BlockBackend& file)
        : m_layout(layout), m_seal(seal), m_file(file) {}

    // Empty from here on: what lies there is of earlier epochs.
    void restart(uint64_t epoch) noexcept { m_position = {.epoch = epoch}; }

    uint64_t used() const noexcept { return m_position.end; }
    // Where the blocks of the buffer go when it is appended, as an offset in the image.
    uint64_t next_blocks_at(JournalBuffer const& buffer) const noexcept;
    // Writes the buffer as one transaction, and empties it. After an error the journal ends where it did, and the
    // buffer is as it was.
    Result<void> append(disk_spec::journal::Kind kind, JournalBuffer& buffer, uint64_t generation,
                        crypto::Digest const& root = {});

    // The next transaction that was written whole in this epoch, with the offset of its blocks in the image; nothing
    // behind the last. The journal goes on behind it.
    struct Found {
        JournalTransaction transaction;
        uint64_t blocks_at = 0;
    };
    Result<std::optional<Found>> next();

    // For appending several transactions or none.
    struct Position {
        uint64_t epoch = 0;
        uint64_t end = 0;
        uint64_t number = 0;
        crypto::Digest mac{};
    };
    Position position() const noexcept { return m_position; }
    void go_back(Position const& position) noexcept { m_position = position; }

private:
    Result<crypto::Digest> mac_of(Bytes descriptor, uint64_t entries);
    Result<bool> blocks_authentic(JournalTransaction const& transaction, Bytes blocks);

    disk_spec::Layout const& m_layout;
    DiskSeal& m_seal;
    devices::BlockBackend& m_file;
    Position m_position;
};

} // namespace coffer::vmm
