// What a process of Coffer may still ask of the host's kernel once it is set up (seccomp(2), by libseccomp). The lists
// of calls are each process's own; what is made of them is here.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>

#include <seccomp.h>

#include "base/result.hpp"

namespace coffer::vmm {

// A condition on a call's argument. Not by the SCMP_A macros: they are C99 compound literals, which clang's pedantry
// refuses.
constexpr scmp_arg_cmp argument_equals(unsigned argument, uint64_t value) {
    return {argument, SCMP_CMP_EQ, value, 0};
}
constexpr scmp_arg_cmp argument_masked(unsigned argument, uint64_t mask, uint64_t value) {
    return {argument, SCMP_CMP_MASKED_EQ, mask, value};
}

// Faults of building are kept, and come out of enter().
class SeccompFilter {
public:
    // `otherwise`: what a call that is not allowed meets (SCMP_ACT_...). Unsupported where there is no memory for it.
    static Result<SeccompFilter> create(uint32_t otherwise);

    void allow(std::span<int const> calls);
    // Where all conditions hold.
    void allow_if(int call, std::initializer_list<scmp_arg_cmp> conditions);
    // mmap and mprotect, but for executable memory.
    void allow_data_memory();
    // Of this process, not new processes. clone3's flags are out of a filter's sight: ENOSYS makes the C library use
    // clone.
    void allow_threads();
    // Limits may be read (malloc and pthread_create do), not set.
    void allow_reading_limits();

    // For all threads of this process and the rest of its life. The host's error where the kernel has no such filters.
    Result<void> enter();

private:
    struct Release {
        void operator()(void* filter) const noexcept { ::seccomp_release(filter); }
    };
    explicit SeccompFilter(void* context) : m_context(context) {}
    void keep(int result) noexcept {
        if (result != 0 && m_failed == 0) m_failed = -result;
    }

    std::unique_ptr<void, Release> m_context;
    int m_failed = 0; // the first errno
};

} // namespace coffer::vmm
