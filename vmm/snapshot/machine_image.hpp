// A machine at rest: its saved state and its RAM in one file that is written once, encrypted and authenticated by
// clusters of 64 KiB (docs/formats/snapshot.md). The header in front of them is the home's.
//
// Pages of zeros are not stored. What is stored is encrypted by AES-256-XTS with the cluster's number as tweak, and has
// a GMAC of its own; a table at the end, whose digest stands in the authenticated header, says where it lies. So any
// cluster can be read by itself, and one that was changed, moved or taken from elsewhere is found before it is
// decrypted.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "base/file.hpp"
#include "crypto/gmac.hpp"
#include "crypto/xts.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/snapshot/direct_file.hpp"
#include "vmm/snapshot/image_spec.hpp"

namespace coffer::vmm {

struct ImageOptions {
    bool compress = false; // zstd, cluster by cluster
    // With 1 the caller's thread does it all; 0: as many as the host has CPUs, at most 4.
    unsigned threads = 0;
    std::function<void(uint64_t done, uint64_t total)> progress = {}; // bytes of content; on the caller's thread
    std::function<bool()> cancelled = {};
};

// Writes all but the header to `to.path`. `memory` holds still meanwhile; its parts are of whole clusters, but for the
// last. Errors: Io, NoSpace, Cancelled; the file is then to be removed.
Result<ImageRoot> write_machine_image(ImageWriting const& to, Bytes state, std::span<Bytes const> memory,
                                      ImageOptions const& options);

struct ImageEntry {
    uint64_t offset = 0;
    uint32_t size = 0;
    uint16_t pages = 0; // 0: nothing is stored
    uint16_t flags = 0;
    crypto::Gmac::Tag tag{};

    // The number that a unit is encrypted and tagged with: one for each writing of a cluster.
    static constexpr uint64_t unit(uint64_t cluster, unsigned writing) noexcept {
        return cluster | uint64_t{writing} << image_spec::k_unit_writing_shift;
    }
    uint64_t unit_of(uint64_t cluster) const noexcept { return unit(cluster, flags >> image_spec::k_writing_shift); }
};

// The same in steps, the first of them while the machine runs. One thread at a time; `to` and the memory outlive it.
class ImageWriter {
public:
    // With room for `state_room` bytes of state.
    static Result<std::unique_ptr<ImageWriter>> create(ImageWriting const& to, uint64_t state_room,
                                                       std::vector<Bytes> memory);
    ~ImageWriter();

    // Clusters of memory, ascending, that may change meanwhile: those that did are to be written again. At most
    // image_spec::k_max_writing times.
    Result<void> write_ahead(std::span<uint64_t const> clusters, ImageOptions const& options);
    // With the machine standing still: its state, and the clusters that changed since they were written, or never were.
    // Ends the file.
    Result<ImageRoot> finish(Bytes state, std::span<uint64_t const> clusters, ImageOptions const& options);

private:
    class Pass;
    class Packer;

    explicit ImageWriter(ImageWriting const& to) : m_to(to) {}
    Result<void> write(Pass& pass, ImageOptions const& options);
    Bytes memory_cluster(uint64_t number) const noexcept;

    ImageWriting const& m_to;
    std::vector<Bytes> m_memory;
    uint64_t m_memory_size = 0;
    uint64_t m_state_clusters = 0;
    std::unique_ptr<DirectFile> m_file;
    std::vector<ImageEntry> m_table;
    unsigned m_writing = 0; // number of the next pass
};

struct ImageTable {
    uint64_t state_size = 0;
    uint64_t memory_size = 0;
    uint64_t state_clusters = 0; // in front of those of memory; at least as many as the state has
    uint64_t at = 0;             // in the file
    std::vector<ImageEntry> entries;
};

// Authenticated, with every entry within the file. Integrity where it is not what was written.
Result<ImageTable> read_image_table(int fd, OpenedImage const& image);
ByteVector encode_image_table(std::vector<ImageEntry> const& entries);

class ImageReader {
public:
    // The file stays open: it can be read when it is no longer in its folder. Authenticates the table, and no content.
    static Result<std::unique_ptr<ImageReader>> open(OpenedImage image);

    uint64_t memory_size() const noexcept { return m_table.memory_size; }
    uint64_t memory_clusters() const noexcept {
        return (m_table.memory_size + image_spec::k_cluster - 1) / image_spec::k_cluster;
    }
    // Bytes in the file.
    uint64_t stored_size() const noexcept { return m_table.at; }

    Result<ByteVector> read_state();

    // Reads clusters. Not thread-safe: one object a thread; the image outlives it.
    class Worker {
    public:
        static Result<Worker> create(ImageReader const& image);
        Worker(Worker&&) noexcept;
        ~Worker();

        // The content of a cluster of memory, in whole (what lies past the end of memory is zeros); empty where all of
        // it is zeros. Valid until the next call. Integrity where it is not what was written.
        Result<Bytes> read(uint64_t memory_cluster);

    private:
        friend class ImageReader;
        Worker();
        Result<Bytes> read_any(uint64_t cluster);

        struct Parts;
        std::unique_ptr<Parts> m_parts;
    };

    // Whether nothing but zeros is in it, by the table alone.
    bool is_zero(uint64_t memory_cluster) const noexcept;

private:
    friend class Worker;
    ImageReader() = default;

    OpenedImage m_image;
    UniqueFd m_fd;
    ImageTable m_table;
};

} // namespace coffer::vmm
