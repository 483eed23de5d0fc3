#include "vmm/home/keeper_sandbox.hpp"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <memory>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

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

struct ReleaseFilter {
    void operator()(void* filter) const noexcept { ::seccomp_release(filter); }
};

} // namespace

Result<void> enter_sandbox(Network network, Files files) {
    std::unique_ptr<void, ReleaseFilter> filter(::seccomp_init(SCMP_ACT_KILL_PROCESS));
    if (!filter) return make_error(ErrorCode::Unsupported, "cannot make a seccomp filter");
    auto* context = filter.get();
    int failed = 0;
    auto keep = [&failed](int result) {
        if (result != 0 && failed == 0) failed = -result;
    };
    auto allow = [&](int call) { keep(::seccomp_rule_add(context, SCMP_ACT_ALLOW, call, 0)); };
    // Not by the SCMP_A macros: they are C99 compound literals, which clang's pedantry refuses.
    auto allow_if = [&](int call, scmp_arg_cmp const& condition) {
        keep(::seccomp_rule_add_array(context, SCMP_ACT_ALLOW, call, 1, &condition));
    };
    auto without_bits = [](unsigned argument, uint64_t bits) {
        return scmp_arg_cmp{argument, SCMP_CMP_MASKED_EQ, bits, 0};
    };
    auto equal_to = [](unsigned argument, uint64_t value) { return scmp_arg_cmp{argument, SCMP_CMP_EQ, value, 0}; };
    for (int call : k_allowed) allow(call);
    // Files are opened, never made or truncated; writing is left open for the terminal.
    uint64_t const unwanted = files == Files::Change ? O_APPEND : O_CREAT | O_TRUNC | O_APPEND;
    allow_if(SCMP_SYS(openat), without_bits(2, unwanted));
    allow_if(SCMP_SYS(open), without_bits(1, unwanted));
    if (files == Files::Change)
        for (int call : k_allowed_for_change) allow(call);
    for (int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) allow_if(call, without_bits(2, PROT_EXEC));
    // The terminal's settings, and whether a descriptor is a terminal.
    for (uint64_t request : {uint64_t{TCGETS}, uint64_t{TCSETS}, uint64_t{TCSETSW}, uint64_t{TCSETSF}})
        allow_if(SCMP_SYS(ioctl), equal_to(1, request));
    if (network == Network::TcpClient) {
        for (int call : k_allowed_for_tcp) allow(call);
        for (uint64_t family : {uint64_t{AF_INET}, uint64_t{AF_INET6}}) {
            // SOCK_NONBLOCK and SOCK_CLOEXEC stand in the same argument, above the type.
            std::array const stream{equal_to(0, family), scmp_arg_cmp{1, SCMP_CMP_MASKED_EQ, 0xF, SOCK_STREAM}};
            keep(::seccomp_rule_add_array(context, SCMP_ACT_ALLOW, SCMP_SYS(socket), stream.size(), stream.data()));
        }
        allow_if(SCMP_SYS(ioctl), equal_to(1, FIONBIO));
    }
    // Limits may be read, not set.
    allow_if(SCMP_SYS(prlimit64), equal_to(2, 0));
    if (failed != 0) return errno_error(failed, "cannot build the keeper's seccomp filter");
    keep(::seccomp_load(context));
    if (failed != 0) return errno_error(failed, "cannot enter the keeper's sandbox");
    return {};
}

} // namespace coffer::vmm::keeper
