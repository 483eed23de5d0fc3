#include "vmm/sandbox/seccomp_filter.hpp"

#include <cerrno>

#include <sched.h>
#include <sys/mman.h>

namespace coffer::vmm {

Result<SeccompFilter> SeccompFilter::create(uint32_t otherwise) {
    auto* context = ::seccomp_init(otherwise);
    if (!context) return make_error(ErrorCode::Unsupported, "cannot make a seccomp filter");
    return SeccompFilter(context);
}

void SeccompFilter::allow(std::span<int const> calls) {
    for (int call : calls) keep(::seccomp_rule_add(m_context.get(), SCMP_ACT_ALLOW, call, 0));
}

void SeccompFilter::allow_if(int call, std::initializer_list<scmp_arg_cmp> conditions) {
    keep(::seccomp_rule_add_array(m_context.get(), SCMP_ACT_ALLOW, call, static_cast<unsigned>(conditions.size()),
                                  conditions.begin()));
}

void SeccompFilter::allow_data_memory() {
    for (int call : {SCMP_SYS(mmap), SCMP_SYS(mprotect)}) allow_if(call, {argument_masked(2, PROT_EXEC, 0)});
}

void SeccompFilter::allow_threads() {
    allow_if(SCMP_SYS(clone), {argument_masked(0, CLONE_THREAD, CLONE_THREAD)});
    keep(::seccomp_rule_add(m_context.get(), SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0));
}

void SeccompFilter::allow_reading_limits() {
    allow_if(SCMP_SYS(prlimit64), {argument_equals(2, 0)});
}

Result<void> SeccompFilter::enter() {
    if (m_failed != 0) return errno_error(m_failed, "cannot build the seccomp filter");
    keep(::seccomp_attr_set(m_context.get(), SCMP_FLTATR_CTL_TSYNC, 1));
    keep(::seccomp_attr_set(m_context.get(), SCMP_FLTATR_CTL_NNP, 1));
    keep(::seccomp_load(m_context.get()));
    if (m_failed != 0) return errno_error(m_failed, "cannot enter the seccomp sandbox");
    return {};
}

} // namespace coffer::vmm
