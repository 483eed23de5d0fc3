// A disk image as a VM uses it: the file that was there first, and above it overlays, of which the uppermost takes
// what is written. Encryption and authentication of an encrypted disk are above this, so that a layer which lies is to
// them what a file is that lies.
//
// Thread rule: reading and writing as BlockBackend; push() and merge() from another thread meanwhile.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "vmm/disk/overlay_file.hpp"
#include "vmm/disk/tracked_file.hpp"

namespace coffer::vmm {

class LayeredFile final : public devices::BlockBackend {
public:
    // `path` is for messages.
    LayeredFile(std::unique_ptr<devices::BlockBackend> base, std::filesystem::path path)
        : m_base(std::move(base)), m_path(std::move(path)), m_buffer(overlay_spec::k_cluster_size) {}

    // The files that it lies in, the lowest first. They live until they are merged.
    std::vector<TrackedFile*> files();
    // The image's own file has another name now; for messages. With no I/O under way.
    void rename(std::filesystem::path path) { m_path = std::move(path); }
    uint64_t size() const noexcept override { return m_base->size(); }
    bool read_only() const noexcept override { return m_base->read_only(); }
    Result<void> read(uint64_t offset, MutBytes to) override;
    Result<void> write(uint64_t offset, Bytes from) override;
    Result<void> flush() override;
    Result<void> write_zeroes(uint64_t offset, uint64_t size) override;
    Result<void> discard(uint64_t offset, uint64_t size) override;

    // From here on everything is written to `overlay`, which has nothing yet.
    void push(std::unique_ptr<OverlayFile> overlay) noexcept;
    // No more is written: what the next start will find is not known. Reads go on. Any thread, commit() below too.
    void stop_writing() noexcept { m_stopped = true; }

    struct Watch {
        std::function<void(uint64_t done, uint64_t total)> progress; // bytes
        std::function<bool()> cancelled;
    };
    // Puts the content of the overlay with this id into what is below it, durable, calls `commit`, which makes that
    // known, and gives the overlay up. At each moment before the image reads the same with and without what was done,
    // because the overlay still covers it; so a merge that failed is begun again. Where it is the uppermost, writes go
    // on meanwhile and stand still only for what was written since it was last gone through, and for `commit`.
    Result<void> merge(Uuid const& id, std::function<Result<void>()> const& commit, Watch const& watch);

private:
    // A part of one cluster.
    struct Piece {
        uint64_t cluster = 0;
        uint64_t offset = 0; // in the image, bytes
        uint64_t size = 0;
        bool whole = false; // all of the cluster
    };
    Piece piece_at(uint64_t offset, uint64_t size) const noexcept;
    // The uppermost of the lowest `layers` overlays that has the cluster; null: the base.
    OverlayFile* holder(size_t layers, uint64_t cluster) const noexcept;
    Result<void> read_through(size_t layers, uint64_t offset, MutBytes to);
    // Makes the uppermost overlay have what the piece leaves of its cluster.
    Result<void> take_up(Piece const& piece);
    void written(uint64_t cluster);
    Result<void> zero(uint64_t offset, uint64_t size, bool must);
    Result<void> check_writing() const;

    Result<void> merge_cluster(size_t layer, uint64_t cluster, MutBytes buffer);
    Result<void> merge_all(size_t layer, Watch const& watch, MutBytes buffer);
    Result<void> merge_written(size_t layer, std::set<uint64_t> const& clusters, MutBytes buffer);
    Result<void> flush_below(size_t layer);

    std::unique_ptr<devices::BlockBackend> m_base;
    std::filesystem::path m_path;
    std::mutex m_mutex;                                   // all below, and the layers' content
    std::vector<std::unique_ptr<OverlayFile>> m_overlays; // the lowest first
    std::optional<std::set<uint64_t>> m_written;          // clusters, while the uppermost is merged
    std::atomic<bool> m_stopped{false};
    ByteVector m_buffer; // a cluster
};

} // namespace coffer::vmm
