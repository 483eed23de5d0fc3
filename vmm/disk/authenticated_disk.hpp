// An encrypted disk on which every change of the image is seen. Private to vmm/disk.
//
// Units that are written go to the journal; a checkpoint moves them to their places, with their tags, when the journal
// is full and at close(). A unit in its place is never half written where the journal does not hold it whole.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <set>

#include "vmm/disk/disk_journal.hpp"
#include "vmm/disk/disk_tags.hpp"
#include "vmm/disk/encrypted_disk.hpp"

namespace coffer::vmm {

class AuthenticatedDisk final : public EncryptedDisk {
public:
    // `header` is authentic and the image's newest. Recovers the image, unless it is read-only.
    static Result<std::unique_ptr<AuthenticatedDisk>>
    open(std::filesystem::path path, std::unique_ptr<devices::BlockBackend> file, DiskSeal seal, DiskHeader header);
    ~AuthenticatedDisk() override;

    Result<void> read(uint64_t offset, MutBytes to) override;
    Result<void> write(uint64_t offset, Bytes from) override;
    // A failure is final: what the host lost is not known, so nothing is written any more.
    Result<void> flush() override;
    Result<void> write_zeroes(uint64_t offset, uint64_t size) override;
    Result<void> discard(uint64_t offset, uint64_t size) override;
    Result<void> close() override;

private:
    // The newest writing of a unit that is not in its place yet.
    struct Slot {
        TagEntry tag;
        uint64_t at = 0; // of its ciphertext: offset in the image, or block of m_pending
        bool pending = false;
    };
    // A part of the journal that is a whole checkpoint.
    struct Images {
        std::map<uint64_t, uint64_t> tag_blocks; // offsets in the image
        std::map<uint64_t, uint64_t> table_blocks;
        crypto::Digest root{};
    };

    AuthenticatedDisk(std::filesystem::path path, std::unique_ptr<devices::BlockBackend> file, DiskSeal seal,
                      DiskHeader header);

    Result<void> recover();
    Result<void> redo(Images const& images);
    Result<void> read_units(uint64_t first, uint64_t count, MutBytes to);
    Result<uint64_t> read_in_place(uint64_t first, uint64_t count, MutBytes to);
    Result<void> open_unit(uint64_t unit, TagEntry const& tag, Bytes ciphertext, MutBytes to);
    Result<void> write_units(uint64_t offset, Bytes from);
    Result<void> put(uint64_t unit, Bytes plain);
    Result<void> put_zeroes(uint64_t unit);
    Result<void> deallocate(uint64_t offset, uint64_t size, bool edges);
    Result<void> make_room(uint64_t unit);
    Result<void> append_pending();
    Result<void> sync();
    Result<void> checkpoint();
    Result<void> append_checkpoint(DiskTags::Change const& change);
    Result<void> write_units_in_place();
    Result<void> write_header(crypto::Digest const& root);
    Result<void> check_writable() const;

    std::mutex m_mutex; // all below, and the image: of the functions that others call
    DiskTags m_tags;
    Journal m_journal;
    JournalBuffer m_pending;
    std::map<uint64_t, Slot> m_slots; // by unit
    std::set<uint64_t> m_touched;     // tag blocks of m_slots
    std::set<uint64_t> m_touched_table;
    // A checkpoint that is in the journal, or may be, and not finished: nothing may follow it there.
    std::optional<DiskTags::Change> m_checkpoint;
    bool m_recovered = false;
    bool m_unsynced = false;
    bool m_failed = false;
    ByteVector m_buffer;  // of units
    ByteVector m_scratch; // one unit
};

} // namespace coffer::vmm
