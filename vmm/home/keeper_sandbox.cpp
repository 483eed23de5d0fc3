#include "vmm/home/keeper_sandbox.hpp"

#include <array>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "vmm/sandbox/seccomp_filter.hpp"

namespace coffer::vmm::keeper {

namespace {

// The native provider, OpenSSL and the C++ runtime after start. No programs or threads are started, no files written,
// no other process looked at.
constexpr std::array k_allowed = {
    // descriptors
    SCMP_SYS(read), SCMP_SYS(pread64), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(close), SCMP_SYS(lseek),
    SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(fcntl),
    // looking at files
    SCMP_SYS(fstat), SCMP_SYS(newfstatat), SCMP_SYS(stat), SCMP_SYS(lstat), SCMP_SYS(statx), SCMP_SYS(access),
    SCMP_SYS(faccessat), SCMP_SYS(faccessat2), SCMP_SYS(getdents64), SCMP_SYS(readlink), SCMP_SYS(readlinkat),
    SCMP_SYS(getcwd),
    // harmless, and how sanitized builds find out whether memory is readable
    SCMP_SYS(pipe), SCMP_SYS(pipe2),
    // memory
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(brk), SCMP_SYS(madvise), SCMP_SYS(mlock), SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    // the rest of the runtime
    SCMP_SYS(futex), SCMP_SYS(getrandom), SCMP_SYS(clock_gettime), SCMP_SYS(gettimeofday), SCMP_SYS(time),
    SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid),
    SCMP_SYS(sysinfo), SCMP_SYS(uname), SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity), SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn), SCMP_SYS(sigaltstack), SCMP_SYS(restart_syscall),
    SCMP_SYS(tgkill), SCMP_SYS(exit), SCMP_SYS(exit_group)};

// Clients of key servers: TCP, and what Boost.Asio waits with. Nothing listens, and no other kind of socket is made.
constexpr std::array k_allowed_for_tcp = {
    SCMP_SYS(connect),      SCMP_SYS(getsockopt),    SCMP_SYS(setsockopt),     SCMP_SYS(getpeername),
    SCMP_SYS(getsockname),  SCMP_SYS(shutdown),      SCMP_SYS(recvmsg),        SCMP_SYS(sendmsg),
    SCMP_SYS(epoll_create), SCMP_SYS(epoll_create1), SCMP_SYS(epoll_ctl),      SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),  SCMP_SYS(eventfd2),      SCMP_SYS(timerfd_create), SCMP_SYS(timerfd_settime)};

// A provider that is made, rotated, backed up or restored: files appear whole, under the provider's lock.
constexpr std::array k_allowed_for_change = {SCMP_SYS(pwrite64),  SCMP_SYS(fsync), SCMP_SYS(rename),
                                             SCMP_SYS(renameat2), SCMP_SYS(mkdir), SCMP_SYS(unlink),
                                             SCMP_SYS(unlinkat),  SCMP_SYS(rmdir), SCMP_SYS(flock)};

} // namespace

Result<void> enter_sandbox(Network network, Files files) {
    auto filter = TRY(SeccompFilter::create(SCMP_ACT_KILL_PROCESS));
    filter.allow(k_allowed);
    // Files are opened, never made or truncated; writing is left open for the terminal.
    uint64_t const unwanted = files == Files::Change ? O_APPEND : O_CREAT | O_TRUNC | O_APPEND;
    filter.allow_if(SCMP_SYS(openat), {argument_masked(2, unwanted, 0)});
    filter.allow_if(SCMP_SYS(open), {argument_masked(1, unwanted, 0)});
    if (files == Files::Change) filter.allow(k_allowed_for_change);
    filter.allow_data_memory();
    // The terminal's settings, and whether a descriptor is a terminal.
    for (uint64_t request : {uint64_t{TCGETS}, uint64_t{TCSETS}, uint64_t{TCSETSW}, uint64_t{TCSETSF}})
        filter.allow_if(SCMP_SYS(ioctl), {argument_equals(1, request)});
    if (network == Network::TcpClient) {
        filter.allow(k_allowed_for_tcp);
        // SOCK_NONBLOCK and SOCK_CLOEXEC stand in the same argument, above the type.
        for (uint64_t family : {uint64_t{AF_INET}, uint64_t{AF_INET6}})
            filter.allow_if(SCMP_SYS(socket), {argument_equals(0, family), argument_masked(1, 0xF, SOCK_STREAM)});
        filter.allow_if(SCMP_SYS(ioctl), {argument_equals(1, FIONBIO)});
    }
    filter.allow_reading_limits();
    return filter.enter();
}

} // namespace coffer::vmm::keeper
