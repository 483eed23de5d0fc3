// What a run has to do with saved machines: going on from a suspended one, and suspending and snapshots on request.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "vmm/control/saved.hpp"
#include "vmm/control/server.hpp"
#include "vmm/machine/machine.hpp"
#include "vmm/snapshot/lazy_memory.hpp"
#include "vmm/snapshot/snapshot_store.hpp"

namespace coffer::vmm {

enum class SuspendedPolicy : uint8_t {
    GoOn,    // from the saved machine where there is one, else power on
    Require, // InvalidArgument where the VM is not suspended
    Discard, // the saved machine is dropped and the VM powered on
};

class SavedRun {
public:
    struct Options {
        SuspendedPolicy policy = SuspendedPolicy::GoOn;
        bool eager = false; // all memory is there before the guest goes on
    };
    // Reads and checks the saved machine, but for its memory. `home` outlives this.
    static Result<std::unique_ptr<SavedRun>> open(HomeSession& home, Options options);

    // Null: the VM is powered on.
    MachineState const* state() const noexcept { return m_state ? &*m_state : nullptr; }

    // Flash content as saved. Refuses (Unsupported) where TPM or UEFI variables were changed while the VM was
    // suspended.
    Result<void> configure(PlatformConfig& config);
    // Before the sandbox: brings memory (or begins to) and state. `on_lost` ends the process: a page cannot be had.
    Result<void> restore(Machine& machine, LazyMemory::OnFailure on_lost);
    // Right before the guest runs: from here on the saved machine is spent.
    Result<void> begin();
    // When it runs: what is then left of the saved machine is removed.
    void begun();

    // All under the device lock.
    struct Hooks {
        std::function<Result<void>()> may_suspend;
        std::function<ByteVector()> save_agent;
        std::function<void()> suspended; // the machine is saved, and is stopped
    };
    // When the guest runs no more, and before the machine's memory goes: ends what still fills it, with no device left
    // that waits for a page, which would find zeros there.
    void end(Machine& machine);
    // Handlers of control's requests. The machine and its disks outlive the server.
    void serve(control::Server& server, Machine& machine, HomeDisks const& disks, Hooks hooks);

    // Any thread, while the machine runs: returns when no part of RAM is still on its way from the saved machine.
    void finish_memory() noexcept {
        if (m_lazy) m_lazy->finish();
    }
    // With the machine paused: the same, and nothing of the saved machine is open any more.
    void let_go_of_image() noexcept {
        finish_memory();
        m_lazy.reset();
    }
    // `work` runs on the owner's thread with the machine paused; this waits for it and passes progress on, as `what`.
    Result<void> while_paused(control::Conversation& with, std::function<Result<void>(ImageOptions const&)> work,
                              std::string_view what = "saving");
    // After serve(), with the machine paused: all of it but RAM, encoded; the home's variables are the flash's then.
    Result<ByteVector> encode_state(WithFirmware firmware);

private:
    SavedRun(SnapshotStore store, Options options) : m_store(std::move(store)), m_options(options) {}

    Result<void> suspend(control::SuspendRequest const& request, control::Conversation& with);
    class Ahead;
    Result<std::unique_ptr<Ahead>> write_ahead(control::SnapshotRequest const& request, control::Conversation& with);
    Result<control::SnapshotAnswer> take(control::SnapshotRequest const& request, control::Conversation& with);
    Result<control::SnapshotAnswer> snapshot(control::SnapshotRequest const& request, control::Conversation& with);
    Result<MachineSource> save();
    std::vector<Bytes> memory() const;

    SnapshotStore m_store;
    Options m_options;
    std::unique_ptr<ImageReader> m_image;
    std::optional<MachineState> m_state;
    std::unique_ptr<LazyMemory> m_lazy;
    Machine* m_machine = nullptr;
    Hooks m_hooks;
    std::mutex m_mutex;  // the store, from clients' threads
    std::string m_spent; // image to be removed
};

} // namespace coffer::vmm
