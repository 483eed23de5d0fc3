// Suspended machines and snapshots in a home.
//
// Everything of one point in time is one unit: configuration, UEFI variables, TPM, keys and content of disks, and, of a
// machine that ran, memory and devices with the TPM's volatile state. It appears, is gone back to, and is deleted at
// one moment, the commit of the home's file `snapshots` (for revert: of the home's journal); what a crash leaves of one
// that did not get so far is removed by the next writer.
//
// Thread rule: one thread at a time.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "vmm/home/home_session.hpp"
#include "vmm/snapshot/machine_image.hpp"
#include "vmm/snapshot/snapshot_disks.hpp"

namespace coffer::vmm {

// What is written of a snapshot while its machine still runs (SnapshotStore::begin()). Ends with what was written.
class SnapshotAhead {
public:
    SnapshotAhead(Uuid const& id, ImageWriting writing) : m_id(id), m_writing(std::move(writing)) {}
    ~SnapshotAhead();
    SnapshotAhead(SnapshotAhead const&) = delete;
    SnapshotAhead& operator=(SnapshotAhead const&) = delete;

    ImageWriter& image() noexcept { return *m_image; }

private:
    friend class SnapshotStore;

    Uuid m_id;
    ImageWriting m_writing;
    std::unique_ptr<ImageWriter> m_image;
};

// A machine that stands still while it is written.
struct MachineSource {
    ByteVector state; // encode_machine_state()
    std::vector<Bytes> memory;
    // Where memory was written before: that, and the clusters that changed since.
    SnapshotAhead* ahead = nullptr;
    std::vector<uint64_t> changed = {};
};

class SnapshotStore {
public:
    // Reads the index. Of a writer's session, removes what a crash left.
    static Result<SnapshotStore> open(HomeSession& home);

    // Of the process that runs the VM. `disks` outlives this.
    void use(HomeDisks const& disks) noexcept { m_disks.use(disks); }

    SnapshotIndex const& index() const noexcept { return m_index; }
    bool suspended() const noexcept { return !m_index.suspended.image.empty(); }

    // After success the VM goes on from here when it is next run. AlreadyExists where it is suspended.
    Result<void> suspend(MachineSource const& machine, ImageOptions const& options);
    // The image to go on from. NotFound where it is not suspended.
    Result<std::unique_ptr<ImageReader>> open_suspended();
    // After success the saved machine is spent: to be called before its guest runs, or where it is given up.
    Result<void> end_suspension();
    // Its two halves: the commit that counts, and the removal of the image that it leaves, if any, which may be later.
    Result<std::string> spend_suspension();
    Result<void> remove_spent(std::string const& image);

    // For a VM that runs: its memory, which outlives the result, may be written ahead of take(), which gets the same
    // tag. Errors: take()'s.
    Result<std::unique_ptr<SnapshotAhead>> begin(std::string const& tag, std::string_view description,
                                                 std::vector<Bytes> memory);
    // `machine`: of a VM that runs; null: it is off. An empty tag is filled in. Busy where the VM is suspended,
    // AlreadyExists where the tag is taken, NoSpace past k_max_snapshots. Nothing is written to the disks meanwhile.
    Result<SnapshotRecord> take(std::string tag, std::string description, MachineSource const* machine,
                                ImageOptions const& options);
    // With the VM off. Afterwards it is as it was when the snapshot was taken, and suspended where it ran then. Checks
    // that all parts of the snapshot are there and authentic, but for the content of memory, before anything is
    // changed.
    Result<SnapshotRecord> revert(std::string_view tag, ImageOptions const& options);
    // Its children become those of its parent. Busy where the VM is to go on from it. What was written to disks since
    // it is merged with what it was based on, if nothing else is; where that fails it is left for later, and logged.
    Result<void> remove(std::string_view tag, ImageOptions const& options);

    // Whether `revert(tag)` could be done, as far as can be told without doing it; for sessions of any kind.
    Result<void> check(std::string_view tag);

private:
    explicit SnapshotStore(HomeSession& home) : m_home(home), m_disks(home) {}
    Result<void> write_index(SnapshotIndex index);
    void tidy_disks(ImageOptions const& options);
    Result<void> clean_up();
    // Whether take() may be called; the tag, which is made up where it is empty.
    Result<std::string> check_take(std::string tag, std::string_view description) const;
    Result<void> write_image(std::string const& name, MachineSource const& machine, ImageOptions const& options);
    Result<SnapshotRecord const*> find(std::string_view tag) const;
    void remove_files(SnapshotRecord const& record);

    HomeSession& m_home;
    SnapshotIndex m_index;
    SnapshotDisks m_disks;
    // A failed commit may count, and be what the next start finds.
    bool m_unsettled = false;
};

// For HomeSession::rekey_deep(): the same image under other keys.
Result<ImageRoot> rewrite_machine_image(OpenedImage const& from, ImageWriting const& to,
                                        std::function<void(uint64_t)> const& advance);

} // namespace coffer::vmm
