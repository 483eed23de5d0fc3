// Runs code in a child process under ptrace(2), and stops or fails it at the n-th system call that writes to a file
// system: what a crash, a full disk or a broken one do to it.
#pragma once

#include <cerrno>
#include <cstdint>
#include <functional>
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

enum class Fault { Kill, Eio, Enospc };

struct PlannedFault {
    unsigned at; // number of the writing system call, from 0
    Fault fault;
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

// `work` runs in the child and gives its exit code; it must not use threads.
inline TracedRun run_traced(std::function<int()> const& work, std::vector<PlannedFault> const& plan) {
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
    long forced_result = 0;
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
        if (entering && writes_files(regs)) {
            for (auto const& planned : plan) {
                if (planned.at != run.writes) continue;
                regs.orig_rax = ~uint64_t{0}; // no system call is made
                forced_result = planned.fault == Fault::Enospc ? -ENOSPC : -EIO;
                ::ptrace(PTRACE_SETREGS, child, nullptr, &regs);
                if (planned.fault == Fault::Kill) ::kill(child, SIGKILL);
            }
            ++run.writes;
        } else if (!entering && forced_result != 0) {
            regs.rax = static_cast<unsigned long long>(forced_result);
            ::ptrace(PTRACE_SETREGS, child, nullptr, &regs);
            forced_result = 0;
        }
        entering = !entering;
    }
}

} // namespace coffer::tests
