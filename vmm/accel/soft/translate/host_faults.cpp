#include "vmm/accel/soft/translate/host_faults.hpp"

#include <array>
#include <csignal>
#include <mutex>

#include <ucontext.h>

#include "base/result.hpp"

namespace coffer::vmm::soft {

namespace {

// initial-exec: no lazy allocation when the handler is the first to touch it.
__attribute__((tls_model("initial-exec"))) thread_local HostFaultTarget const* t_target = nullptr;

constexpr std::array k_signals{SIGFPE, SIGSEGV, SIGILL, SIGTRAP, SIGBUS};
std::array<struct sigaction, k_signals.size()> g_previous;

bool is_guest_visible(int64_t trap) {
    switch (trap) {
    case 0:
    case 3:
    case 4:
    case 6:
    case 13:
    case 16:
    case 17:
    case 19: return true;
    default: return false;
    }
}

void pass_on(int signal, siginfo_t* info, void* context) {
    for (size_t i = 0; i < k_signals.size(); ++i) {
        if (k_signals[i] != signal) continue;
        struct sigaction const& previous = g_previous[i];
        if (previous.sa_flags & SA_SIGINFO) {
            previous.sa_sigaction(signal, info, context);
        } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
            previous.sa_handler(signal);
        } else {
            // Back to the default, and the instruction faults again.
            struct sigaction fallback {};
            fallback.sa_handler = SIG_DFL;
            sigaction(signal, &fallback, nullptr);
            if (info->si_code <= 0) raise(signal);
        }
    }
}

void on_signal(int signal, siginfo_t* info, void* context) {
    auto* user = static_cast<ucontext_t*>(context);
    auto& registers = user->uc_mcontext.gregs;
    HostFaultTarget const* target = t_target;
    auto pc = static_cast<uintptr_t>(registers[REG_RIP]);
    if (info->si_code > 0 && target && pc >= target->code_begin && pc < target->code_end &&
        is_guest_visible(registers[REG_TRAPNO])) {
        *target->vector = static_cast<uint64_t>(registers[REG_TRAPNO]);
        *target->address = pc;
        registers[REG_RIP] = static_cast<greg_t>(target->landing);
        return;
    }
    pass_on(signal, info, context);
}

} // namespace

void install_host_fault_handlers() noexcept {
    static std::once_flag once;
    std::call_once(once, [] {
        for (size_t i = 0; i < k_signals.size(); ++i) {
            struct sigaction action {};
            action.sa_sigaction = on_signal;
            action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
            sigemptyset(&action.sa_mask);
            COFFER_ASSERT(sigaction(k_signals[i], &action, &g_previous[i]) == 0);
        }
    });
}

HostFaultScope::HostFaultScope(HostFaultTarget const& target) noexcept : m_previous(t_target) {
    t_target = &target;
}
HostFaultScope::~HostFaultScope() {
    t_target = m_previous;
}

} // namespace coffer::vmm::soft
