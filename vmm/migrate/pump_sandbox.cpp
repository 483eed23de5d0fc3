#include "vmm/migrate/pump_sandbox.hpp"

#include <array>

#include "vmm/sandbox/seccomp_filter.hpp"

namespace coffer::vmm {

namespace {

// OpenSSL's records over sockets that are open, and the C++ runtime. No file, socket, program or thread is made.
constexpr std::array k_allowed{
    // descriptors
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(shutdown), SCMP_SYS(poll),
    SCMP_SYS(ppoll), SCMP_SYS(close), SCMP_SYS(fcntl), SCMP_SYS(fstat), SCMP_SYS(newfstatat),
    // memory
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(brk), SCMP_SYS(madvise), SCMP_SYS(mlock), SCMP_SYS(munlock),
    // the rest of the runtime
    SCMP_SYS(futex), SCMP_SYS(getrandom), SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time),
    SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sched_yield), SCMP_SYS(tgkill), SCMP_SYS(restart_syscall), SCMP_SYS(exit), SCMP_SYS(exit_group)};

} // namespace

Result<void> enter_pump_sandbox() {
    auto filter = TRY(SeccompFilter::create(SCMP_ACT_KILL_PROCESS));
    filter.allow(k_allowed);
    filter.allow_data_memory();
    filter.allow_reading_limits();
    return filter.enter();
}

} // namespace coffer::vmm
