// The disks' part of snapshots (docs/formats/snapshot.md, "Disks"): what was frozen stays in the files that it is in,
// and an overlay takes what is written from then on; or, where the file system shares blocks, a copy is kept.
//
// Works on an index in the making: what is prepared here counts when that index is committed, by whom it belongs to.
//
// Thread rule: one thread at a time.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "vmm/disk/home_disks.hpp"
#include "vmm/home/home_together.hpp"
#include "vmm/snapshot/machine_image.hpp"
#include "vmm/snapshot/snapshot_index.hpp"

namespace coffer::vmm {

constexpr std::string_view k_disk_copy_prefix = "saved-"; // of copies of disks in the home's folder

// The disks that a snapshot holds: those that the guest can write.
std::vector<DiskConfig> written_disks(VmConfig const& config);
std::string disk_copy_of(SnapshotRecord const& record, uint32_t number);

class SnapshotDisks {
public:
    explicit SnapshotDisks(HomeSession& home) : m_home(home) {}

    // Of the process that runs the VM: its disks are open, and go on from what is prepared. `disks` outlives this.
    void use(HomeDisks const& disks) noexcept { m_live = &disks; }

    // Freezes the disks as they are for `record`, which is filled in, and prepares what `next` goes on with. Nothing is
    // written to the disks meanwhile.
    Result<void> keep(SnapshotRecord& record, SnapshotIndex& next);
    // Prepares what a VM of this configuration, whose disks are those of the record, goes on with.
    Result<void> go_back(SnapshotRecord const& record, VmConfig const& config, SnapshotIndex& next,
                         TogetherChange& change, ImageOptions const& options);
    // What was prepared counts: the disks that are open go on with it. Or does not: its files are removed.
    void adopt() noexcept;
    void forget() noexcept;
    // What counts is not known: the disks that are open are written no more.
    void stop_writing() noexcept;

    // Integrity where a file that the record's disks need is missing.
    Result<void> check(SnapshotRecord const& record, VmConfig const& config, SnapshotIndex const& index) const;

    // Layers that nothing needs any more are dropped, and those that only another is based on are merged with it.
    // `commit` makes the index that it is given the home's. Where the VM runs, what its disks are not on is left.
    Result<void> tidy(SnapshotIndex index, std::function<Result<void>(SnapshotIndex)> const& commit,
                      ImageOptions const& options);

private:
    struct Pending {
        std::string disk;
        std::unique_ptr<OverlayFile> overlay;
    };
    // A layer to be dropped; with `into`, its content goes there.
    struct Step {
        DiskLayer layer;
        bool merge = false;
    };

    Result<bool> share(SnapshotRecord& record, std::vector<DiskConfig> const& disks);
    Result<Uuid> prepare(DiskConfig const& disk, uint64_t size);
    Result<uint64_t> frozen_size(DiskConfig const& disk);
    Result<void> fill_from(std::filesystem::path const& copy, DiskConfig const& disk, SnapshotIndex& next,
                           ImageOptions const& options);
    std::vector<Step> steps(SnapshotIndex const& index) const;
    Result<void> carry_out(Step const& step, SnapshotIndex& index,
                           std::function<Result<void>(SnapshotIndex)> const& commit, ImageOptions const& options);
    std::filesystem::path folder() const { return m_home.location().folder(); }

    HomeSession& m_home;
    HomeDisks const* m_live = nullptr;
    std::vector<Pending> m_pending;
    std::vector<std::filesystem::path> m_made; // copies, and files beside disks
};

} // namespace coffer::vmm
