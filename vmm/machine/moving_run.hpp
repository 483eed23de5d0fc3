// What a run has to do with its home's going to another root of this host (`coffer move`): the VM's process stays, with
// its terminal and all that is connected to it, and from one moment on writes the home that lies there.
#pragma once

#include <functional>

#include "vmm/control/move.hpp"
#include "vmm/control/server.hpp"
#include "vmm/disk/home_disks.hpp"
#include "vmm/machine/machine.hpp"
#include "vmm/machine/saved_run.hpp"

namespace coffer::vmm {

class MovingRun {
public:
    // Under the device lock.
    struct Hooks {
        std::function<Result<void>()> may_move;
        // It cannot be told which of two homes counts: the machine is to end, with this error.
        std::function<void(Error)> lost;
    };
    // All outlive this.
    MovingRun(HomeSession& home, Machine& machine, SavedRun& saved, HomeDisks& disks, Hooks hooks)
        : m_home(home), m_machine(machine), m_saved(saved), m_disks(disks), m_hooks(std::move(hooks)) {}

    // The handler of control's request; the machine and this outlive the server.
    void serve(control::Server& server);

private:
    Result<control::MoveAnswer> move(control::MoveRequest const& request, control::Conversation& with);

    HomeSession& m_home;
    Machine& m_machine;
    SavedRun& m_saved;
    HomeDisks& m_disks;
    Hooks m_hooks;
    control::Server* m_server = nullptr;
};

} // namespace coffer::vmm
