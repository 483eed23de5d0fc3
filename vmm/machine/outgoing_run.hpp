// What a run has to do with leaving for another host: the source's side of a migration (vmm/migrate/source.hpp), with
// the machine that it is about.
//
// The guest runs while its memory is sent. Then the owner's thread holds it still until the migration has ended: until
// the destination runs it, or it goes on here; also where the destination's word is missing, for however long.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>

#include "vmm/control/migrate.hpp"
#include "vmm/control/server.hpp"
#include "vmm/machine/incoming_run.hpp"
#include "vmm/machine/machine.hpp"
#include "vmm/machine/saved_run.hpp"
#include "vmm/migrate/disk_sender.hpp"
#include "vmm/migrate/memory_sender.hpp"
#include "vmm/migrate/source.hpp"

namespace coffer::vmm {

class OutgoingRun {
public:
    // Under the device lock, but for `stopping`, which takes it.
    struct Hooks {
        std::function<Result<void>()> may_leave;
        std::function<void()> moved;     // the VM is another host's, and the machine is to be stopped
        std::function<bool()> stopping;  // the machine was told to end meanwhile
        IncomingRun* arriving = nullptr; // the VM is here by a migration, which its source may ask about
    };
    // All outlive this; `saved` may still be filling memory.
    OutgoingRun(HomeSession& home, Machine& machine, SavedRun& saved, HomeDisks& disks, Hooks hooks)
        : m_home(home), m_machine(machine), m_saved(saved), m_disks(disks), m_hooks(std::move(hooks)) {}

    // Handlers of control's requests; the machine outlives the server.
    void serve(control::Server& server);

private:
    struct Leaving; // one migration
    class RoundProgress;

    Result<control::MigrateAnswer> leave(control::MigrateRequest const& request, control::Conversation& with);
    Result<control::SettleAnswer> settle(control::SettleRequest const& request, control::Conversation& with);
    Result<migrate::HelloMessage> describe(bool copy_disks) const;
    std::vector<migrate::DiskFile> disk_files(bool copy_disks) const;
    Result<void> send_disks(Leaving& leaving, control::Conversation& with);
    Result<void> send_memory(Leaving& leaving, control::Conversation& with);
    // On the owner's thread, with the guest stopped.
    Result<migrate::Outcome> switch_over(Leaving& leaving);
    void wait_until_settled(Leaving& leaving);
    void end_as_moved();
    void stay();

    HomeSession& m_home;
    Machine& m_machine;
    SavedRun& m_saved;
    HomeDisks& m_disks;
    Hooks m_hooks;

    std::mutex m_mutex;
    std::condition_variable m_changed;
    // A migration whose end is not known, while its machine stands still; and how it ended.
    std::optional<OutgoingMigration> m_undecided;
    std::optional<migrate::Outcome> m_decision;
    std::mutex m_settling; // one asks at a time
};

} // namespace coffer::vmm
