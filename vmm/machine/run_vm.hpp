// `coffer run`, whatever the command line looks like: one VM from its unlocked home to its end.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/clock.hpp"
#include "base/result.hpp"
#include "vmm/accel/choose.hpp"
#include "vmm/home/home_session.hpp"
#include "vmm/machine/direct_kernel.hpp"
#include "vmm/machine/incoming_run.hpp"
#include "vmm/machine/saved_run.hpp"

namespace coffer::vmm {

struct RunOptions {
    AcceleratorPreference accelerator = AcceleratorPreference::Auto;
    std::optional<DirectKernel> kernel;
    std::optional<std::string> command; // run by the guest's agent
    std::optional<Nanoseconds> timeout;
    std::optional<std::filesystem::path> serial; // a file, or "-" for standard output; else the terminal
    bool verbose = false;
    SavedRun::Options saved;         // what is done where the VM is suspended
    IncomingRun* incoming = nullptr; // the machine comes from another host; outlives the run
};

enum class RunEnd : uint8_t {
    PowerOff, // the guest switched itself off
    Quit,     // Ctrl-A x
    TimedOut,
    Interrupted,  // by a signal: `code` is its number
    Moved,        // by `coffer migrate`: another host runs it
    Suspended,    // by `coffer suspend`; `code` is 1 where a command has not ended
    CommandEnded, // `code` is the command's exit code, 128 + n where signal n killed it
};

struct RunOutcome {
    RunEnd end = RunEnd::PowerOff;
    int code = 0;
};

// An error is the VM's: a missing image, a triple fault, a failed disk. Blocks SIGINT, SIGTERM and SIGHUP in the
// process and enters the sandbox, so it is called once, before other threads are made.
Result<RunOutcome> run_vm(HomeSession& home, RunOptions options);

} // namespace coffer::vmm
