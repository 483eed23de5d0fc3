#include <array>
#include <cerrno>
#include <memory>

#include <sched.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "vmm/tpm/tpm_server.hpp"

namespace coffer::vmm::tpm_server {

namespace {

constexpr std::array k_allowed{
    // descriptors and sockets
    SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(writev), SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(lseek),
    SCMP_SYS(close), SCMP_SYS(fcntl), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(accept4), SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg), SCMP_SYS(sendto), SCMP_SYS(setsockopt), SCMP_SYS(getsockopt),
    // the home's files
    SCMP_SYS(openat), SCMP_SYS(open), SCMP_SYS(stat), SCMP_SYS(lstat), SCMP_SYS(fstat), SCMP_SYS(newfstatat),
    SCMP_SYS(statx), SCMP_SYS(access), SCMP_SYS(faccessat), SCMP_SYS(faccessat2), SCMP_SYS(fsync), SCMP_SYS(fdatasync),
    SCMP_SYS(ftruncate), SCMP_SYS(fchmod), SCMP_SYS(rename), SCMP_SYS(renameat), SCMP_SYS(renameat2), SCMP_SYS(unlink),
    SCMP_SYS(unlinkat), SCMP_SYS(mkdir), SCMP_SYS(mkdirat),
    // memory
    SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(brk), SCMP_SYS(mlock), SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    // threads, time, signals, the rest of the runtime
    SCMP_SYS(futex), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity),
    SCMP_SYS(gettid), SCMP_SYS(getpid), SCMP_SYS(clock_gettime), SCMP_SYS(clock_nanosleep), SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday), SCMP_SYS(time), SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigaltstack), SCMP_SYS(tgkill), SCMP_SYS(restart_syscall), SCMP_SYS(exit), SCMP_SYS(exit_group),
    SCMP_SYS(getrandom), SCMP_SYS(getuid), SCMP_SYS(geteuid), SCMP_SYS(getgid), SCMP_SYS(getegid), SCMP_SYS(sysinfo),
    SCMP_SYS(uname), SCMP_SYS(membarrier)};

constexpr scmp_arg_cmp k_no_exec{.arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0};
constexpr scmp_arg_cmp k_thread{.arg = 0, .op = SCMP_CMP_MASKED_EQ, .datum_a = CLONE_THREAD, .datum_b = CLONE_THREAD};
constexpr scmp_arg_cmp k_read_only{.arg = 2, .op = SCMP_CMP_EQ, .datum_a = 0, .datum_b = 0};
constexpr scmp_arg_cmp k_set_name{.arg = 0, .op = SCMP_CMP_EQ, .datum_a = PR_SET_NAME, .datum_b = 0};

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
    for (int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)})
        keep(::seccomp_rule_add(context, SCMP_ACT_ALLOW, call, 1, k_no_exec));
    // New threads, not new processes. clone3's flags are out of a filter's sight: ENOSYS makes the C library use clone.
    keep(::seccomp_rule_add(context, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, k_thread));
    keep(::seccomp_rule_add(context, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0));
    keep(::seccomp_rule_add(context, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 1, k_read_only));
    keep(::seccomp_rule_add(context, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, k_set_name));
    if (failed != 0) return errno_error(failed, "cannot build the seccomp filter");
    keep(::seccomp_attr_set(context, SCMP_FLTATR_CTL_TSYNC, 1));
    keep(::seccomp_attr_set(context, SCMP_FLTATR_CTL_NNP, 1));
    keep(::seccomp_load(context));
    if (failed != 0) return errno_error(failed, "cannot enter the seccomp sandbox");
    return {};
}

} // namespace coffer::vmm::tpm_server
