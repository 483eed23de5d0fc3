#include "vmm/machine/sandbox.hpp"

#include <array>
#include <cerrno>
#include <memory>
#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

namespace coffer::vmm {

namespace {

// What devices, the home, both CPU backends and the C++ runtime use after set-up.
constexpr std::array k_allowed{
    // descriptors
    SCMP_SYS(read),
    SCMP_SYS(readv),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(lseek),
    SCMP_SYS(close),
    SCMP_SYS(dup),
    SCMP_SYS(fcntl),
    SCMP_SYS(ioctl),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_create1),
    SCMP_SYS(eventfd2),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(pipe2),
    // the control socket, which was made before: its clients, and what they send
    SCMP_SYS(accept4),
    SCMP_SYS(getsockopt),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    // the home's files
    SCMP_SYS(openat),
    SCMP_SYS(open),
    SCMP_SYS(stat),
    SCMP_SYS(lstat),
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(statx),
    SCMP_SYS(access),
    SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate),
    SCMP_SYS(fchmod),
    SCMP_SYS(flock),
    SCMP_SYS(rename),
    SCMP_SYS(renameat),
    SCMP_SYS(renameat2),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(mkdir),
    SCMP_SYS(mkdirat),
    SCMP_SYS(getdents64),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    // memory, but for PROT_EXEC below
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    SCMP_SYS(mincore),
    SCMP_SYS(mlock),
    SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    // threads, time, signals
    SCMP_SYS(futex),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(gettid),
    SCMP_SYS(getpid),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(tgkill),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(wait4),
    SCMP_SYS(waitid),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    // the rest of the runtime
    SCMP_SYS(getrandom),
    SCMP_SYS(getrusage),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(membarrier),
};

struct ReleaseFilter {
    void operator()(void* filter) const noexcept { ::seccomp_release(filter); }
};

} // namespace

Result<void> enter_sandbox() {
    std::unique_ptr<void, ReleaseFilter> filter(::seccomp_init(SCMP_ACT_ERRNO(EPERM)));
    if (!filter) return make_error(ErrorCode::Unsupported, "cannot make a seccomp filter");
    auto* context = filter.get();
    int failed = 0;
    auto keep = [&failed](int result) {
        if (result != 0 && failed == 0) failed = -result;
    };
    for (int call : k_allowed) keep(::seccomp_rule_add(context, SCMP_ACT_ALLOW, call, 0));
    // Not by the SCMP_A macros: they are C99 compound literals, which clang's pedantry refuses.
    auto allow_if = [&](int call, scmp_arg_cmp const& condition) {
        keep(::seccomp_rule_add_array(context, SCMP_ACT_ALLOW, call, 1, &condition));
    };
    for (int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) allow_if(call, {2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0});
    // New threads, not new processes. clone3's flags are out of a filter's sight: ENOSYS makes the C library use clone.
    allow_if(SCMP_SYS(clone), {0, SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD});
    keep(::seccomp_rule_add(context, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0));
    // Limits may be read (by malloc and by pthread_create), not set.
    allow_if(SCMP_SYS(prlimit64), {2, SCMP_CMP_EQ, 0, 0});
    allow_if(SCMP_SYS(prctl), {0, SCMP_CMP_EQ, PR_SET_NAME, 0});
    if (failed != 0) return errno_error(failed, "cannot build the seccomp filter");
    keep(::seccomp_attr_set(context, SCMP_FLTATR_CTL_TSYNC, 1));
    keep(::seccomp_attr_set(context, SCMP_FLTATR_CTL_NNP, 1));
    keep(::seccomp_load(context));
    if (failed != 0) return errno_error(failed, "cannot enter the seccomp sandbox");
    return {};
}

} // namespace coffer::vmm
