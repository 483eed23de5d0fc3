// Runs code in a child process under ptrace(2), and looks at its system calls, or stops or fails it at the n-th one
// that writes to a file system: what a crash, a full disk or a broken one do to it.
#pragma once

#include <cerrno>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <vector>

#include <fcntl.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

namespace coffer::tests {

enum class Fault {
    Kill,
    Eio,
    Enospc, // of calls that take up space: what writes, makes a file or a folder
    Erofs,
};

struct PlannedFault {
    unsigned at; // number of the writing system call, from 0
    Fault fault;
    bool stays = false; // and every later one, too
};

struct TracedRun {
    bool killed = false;
    int exit_code = -1;
    unsigned writes = 0; // writing system calls that were begun
};

inline bool writes_files(user_regs_struct const& regs) {
    switch (regs.orig_rax) {
    case SYS_open: return (regs.rsi & (O_CREAT | O_TRUNC)) != 0;
    case SYS_openat: return (regs.rdx & (O_CREAT | O_TRUNC)) != 0;
    case SYS_write:
    case SYS_pwrite64:
    case SYS_fsync:
    case SYS_fdatasync:
    case SYS_fallocate:
    case SYS_ftruncate:
    case SYS_rename:
    case SYS_renameat:
    case SYS_renameat2:
    case SYS_unlink:
    case SYS_unlinkat:
    case SYS_rmdir:
    case SYS_mkdir:
    case SYS_mkdirat: return true;
    default: return false;
    }
}

// Whether a full disk refuses it.
inline bool takes_space(user_regs_struct const& regs) {
    switch (regs.orig_rax) {
    case SYS_open:
    case SYS_openat:
    case SYS_write:
    case SYS_pwrite64:
    case SYS_ftruncate:
    case SYS_mkdir:
    case SYS_mkdirat: return true;
    default: return false;
    }
}

// Called at each of the child's system calls.
struct SyscallWatcher {
    // Before it; a value is its result, and the call is not made. May kill the child.
    std::function<std::optional<long>(pid_t child, user_regs_struct const& before)> entering;
    // After it, with the registers from before it. May be empty.
    std::function<void(pid_t child, user_regs_struct const& before, long result)> left = {};
};

// `work` runs in the child and gives its exit code; it must not use threads. `writes` is not counted.
inline TracedRun run_watched(std::function<int()> const& work, SyscallWatcher const& watcher) {
    pid_t const child = ::fork();
    if (child < 0) throw std::runtime_error("fork failed");
    if (child == 0) {
        ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        ::raise(SIGSTOP);
        ::_exit(work());
    }
    TracedRun run;
    int status = 0;
    ::waitpid(child, &status, 0);
    // SAFETY: the kernel takes option bits and signal numbers in the data pointer.
    ::ptrace(PTRACE_SETOPTIONS, child, nullptr, reinterpret_cast<void*>(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
    std::optional<long> forced_result;
    user_regs_struct before{};
    bool entering = true;
    long signal_to_pass = 0;
    for (;;) {
        // SAFETY: as above.
        ::ptrace(PTRACE_SYSCALL, child, nullptr, reinterpret_cast<void*>(signal_to_pass));
        signal_to_pass = 0;
        if (::waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid failed");
        if (WIFEXITED(status)) {
            run.exit_code = WEXITSTATUS(status);
            return run;
        }
        if (WIFSIGNALED(status)) {
            run.killed = true;
            return run;
        }
        if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
            signal_to_pass = WSTOPSIG(status);
            continue;
        }
        user_regs_struct regs{};
        ::ptrace(PTRACE_GETREGS, child, nullptr, &regs);
        if (entering) {
            before = regs;
            forced_result = watcher.entering ? watcher.entering(child, before) : std::nullopt;
            if (forced_result) {
                regs.orig_rax = ~uint64_t{0}; // no system call is made
                ::ptrace(PTRACE_SETREGS, child, nullptr, &regs);
            }
        } else {
            if (forced_result) {
                regs.rax = static_cast<unsigned long long>(*forced_result);
                ::ptrace(PTRACE_SETREGS, child, nullptr, &regs);
            }
            if (watcher.left) watcher.left(child, before, static_cast<long>(regs.rax));
        }
        entering = !entering;
    }
}

inline TracedRun run_traced(std::function<int()> const& work, std::vector<PlannedFault> const& plan) {
    unsigned writes = 0;
    auto run = run_watched(work, {.entering = [&](pid_t child, user_regs_struct const& regs) -> std::optional<long> {
                               if (!writes_files(regs)) return std::nullopt;
                               unsigned const number = writes++;
                               std::optional<long> result;
                               for (auto const& planned : plan) {
                                   if (planned.at != number && !(planned.stays && planned.at < number)) continue;
                                   switch (planned.fault) {
                                   case Fault::Kill:
                                       ::kill(child, SIGKILL);
                                       result = -EIO; // it is not made any more
                                       break;
                                   case Fault::Eio: result = -EIO; break;
                                   case Fault::Erofs: result = -EROFS; break;
                                   case Fault::Enospc:
                                       if (!planned.stays || takes_space(regs)) result = -ENOSPC;
                                       break;
                                   }
                               }
                               return result;
                           }});
    run.writes = writes;
    return run;
}

} // namespace coffer::tests
