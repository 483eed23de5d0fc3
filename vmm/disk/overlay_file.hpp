// An overlay: what was written to a disk image since a point in time, in a file of its own (docs/formats/disk.md,
// "Overlays"). It has some clusters of the image whole, and says which; the others are those of the image below it.
//
// Thread rule: as BlockBackend, and holds() from another thread is the caller's to order.
#pragma once

#include <filesystem>
#include <memory>
#include <set>

#include "base/uuid.hpp"
#include "devices/core/backends.hpp"
#include "vmm/disk/overlay_spec.hpp"

namespace coffer::vmm {

class OverlayFile {
public:
    struct Identity {
        Uuid id;
        uint64_t size = 0; // of the image, bytes

        bool operator==(Identity const&) const = default;
    };

    // Makes a sparse file that has no cluster, durable but for its name in the folder; on failure there is none.
    static Result<std::unique_ptr<OverlayFile>> create(std::filesystem::path const& path, Identity const& identity);
    // Locked as RawDisk does it. Integrity where it is missing or another one.
    static Result<std::unique_ptr<OverlayFile>> open(std::filesystem::path const& path, Identity const& identity,
                                                     bool read_only);
    // `file` holds the overlay; `path` is for messages.
    static Result<std::unique_ptr<OverlayFile>> open(std::unique_ptr<devices::BlockBackend> file,
                                                     std::filesystem::path const& path, Identity const& identity);

    Identity const& identity() const noexcept { return m_identity; }
    devices::BlockBackend& file() noexcept { return *m_file; }
    uint64_t clusters() const noexcept { return m_layout.clusters(); }
    bool holds(uint64_t cluster) const noexcept {
        return (std::to_integer<unsigned>(m_table[cluster / 8]) >> (cluster % 8) & 1U) != 0;
    }

    // Offsets in the image. Reading and zeroing parts of clusters is for clusters that it has; writing one that it has
    // not writes all of it. Written clusters count as held with hold().
    Result<void> read(uint64_t offset, MutBytes to) { return m_file->read(m_layout.data_at() + offset, to); }
    Result<void> write(uint64_t offset, Bytes from) { return m_file->write(m_layout.data_at() + offset, from); }
    Result<void> write_zeroes(uint64_t offset, uint64_t size) {
        return m_file->write_zeroes(m_layout.data_at() + offset, size);
    }
    Result<void> discard(uint64_t offset, uint64_t size) { return m_file->discard(m_layout.data_at() + offset, size); }
    void hold(uint64_t cluster);
    // Makes clusters durable, and then that it has them: after a crash in between they are those below.
    Result<void> flush();

private:
    OverlayFile(std::unique_ptr<devices::BlockBackend> file, Identity identity)
        : m_file(std::move(file)), m_identity(identity), m_layout{identity.size}, m_table(m_layout.table_size()) {}

    std::unique_ptr<devices::BlockBackend> m_file;
    Identity m_identity;
    overlay_spec::Layout m_layout;
    ByteVector m_table;
    std::set<uint64_t> m_changed; // blocks of the table
};

} // namespace coffer::vmm
