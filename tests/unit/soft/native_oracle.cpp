#include "tests/unit/soft/native_oracle.hpp"

#include <csignal>
#include <cstdlib>
#include <cstring>

#include <asm/prctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/result.hpp"

namespace coffer::tests {

namespace {

constexpr uintptr_t k_page = 0x3000'0000; // below 2 GiB, where no program or library lies by itself
constexpr size_t k_size = 1 << 16;
constexpr size_t k_data = 0x8000; // of the page: state, addressed relative to RIP

struct Data {
    std::array<uint64_t, 16> gpr;
    uint64_t flags;
    uint64_t host_rsp;
    uint64_t fault_pc; // 0: none
    uint64_t fault_vector;
    alignas(16) std::array<uint8_t, 512> fxsave;
    alignas(16) std::array<uint8_t, 512> host_fxsave;
};

uint8_t* g_begin;
uintptr_t g_exit;

void on_fault(int signal, siginfo_t*, void* context) {
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    auto pc = static_cast<uintptr_t>(registers[REG_RIP]);
    auto begin = reinterpret_cast<uintptr_t>(g_begin);
    if (pc < begin || pc >= begin + k_size) {
        std::signal(signal, SIG_DFL);
        return;
    }
    auto& data = *reinterpret_cast<Data*>(g_begin + k_data);
    data.fault_pc = pc;
    data.fault_vector = static_cast<uint64_t>(registers[REG_TRAPNO]);
    registers[REG_RIP] = static_cast<greg_t>(g_exit);
}

class Writer {
public:
    explicit Writer(uint8_t* page) : m_page(page) {}
    void put(std::initializer_list<int> bytes) {
        for (int byte : bytes) m_page[at++] = static_cast<uint8_t>(byte);
    }
    // An instruction ending in a RIP-relative disp32 to `field` of Data.
    void relative(std::initializer_list<int> bytes, size_t field) {
        put(bytes);
        auto disp = static_cast<int32_t>(k_data + field) - static_cast<int32_t>(at + 4);
        std::memcpy(m_page + at, &disp, 4);
        at += 4;
    }
    size_t at = 0;

private:
    uint8_t* m_page;
};

} // namespace

NativeOracle::NativeOracle(uint64_t gs_base) {
    void* page = mmap(reinterpret_cast<void*>(k_page), k_size, PROT_READ | PROT_WRITE | PROT_EXEC,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    COFFER_ASSERT(page == reinterpret_cast<void*>(k_page));
    m_page = static_cast<uint8_t*>(page);
    g_begin = m_page;
    COFFER_ASSERT(syscall(SYS_arch_prctl, ARCH_SET_GS, gs_base) == 0);
    Writer w(m_page);
    w.put({0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57}); // callee-saved registers
    w.relative({0x48, 0x89, 0x25}, offsetof(Data, host_rsp));            // mov [host_rsp], rsp
    w.relative({0x48, 0x0F, 0xAE, 0x05}, offsetof(Data, host_fxsave));   // fxsave64
    w.relative({0x48, 0x0F, 0xAE, 0x0D}, offsetof(Data, fxsave));        // fxrstor64
    w.relative({0xFF, 0x35}, offsetof(Data, flags));                     // push flags
    w.put({0x9D});                                                       // popfq
    for (int i = 0; i < 16; ++i)
        w.relative({i >= 8 ? 0x4C : 0x48, 0x8B, 0x05 | (i & 7) << 3}, static_cast<size_t>(i) * 8);
    m_prologue = w.at;
    m_signal_stack = std::malloc(1 << 17);
    stack_t stack{};
    stack.ss_sp = m_signal_stack;
    stack.ss_size = 1 << 17;
    sigaltstack(&stack, nullptr);
}

NativeOracle::~NativeOracle() {
    stack_t stack{};
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
    std::free(m_signal_stack);
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0UL);
    munmap(m_page, k_size);
}

uint64_t NativeOracle::code_address() const {
    return k_page + m_prologue;
}

std::optional<OracleFault> NativeOracle::run(std::span<uint8_t const> code, OracleState& state) {
    auto& data = *reinterpret_cast<Data*>(m_page + k_data);
    data.gpr = state.gpr;
    data.flags = (state.rflags & 0xCD5) | 0x202;
    data.fxsave = state.fxsave;
    data.fault_pc = 0;
    COFFER_ASSERT(m_prologue + code.size() + 256 < k_data);
    Writer w(m_page);
    w.at = m_prologue;
    for (uint8_t byte : code) w.put({byte});
    g_exit = reinterpret_cast<uintptr_t>(m_page) + w.at;
    for (int i = 0; i < 16; ++i)
        w.relative({i >= 8 ? 0x4C : 0x48, 0x89, 0x05 | (i & 7) << 3}, static_cast<size_t>(i) * 8);
    w.relative({0x48, 0x8B, 0x25}, offsetof(Data, host_rsp));
    w.put({0x9C});
    w.relative({0x8F, 0x05}, offsetof(Data, flags));
    w.put({0xFC});
    w.relative({0x48, 0x0F, 0xAE, 0x05}, offsetof(Data, fxsave));
    w.relative({0x48, 0x0F, 0xAE, 0x0D}, offsetof(Data, host_fxsave));
    w.put({0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3});

    struct sigaction action {
    }, old[4];
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    constexpr int k_signals[] = {SIGFPE, SIGSEGV, SIGILL, SIGBUS};
    for (size_t i = 0; i < 4; ++i) sigaction(k_signals[i], &action, &old[i]);
    reinterpret_cast<void (*)()>(m_page)();
    for (size_t i = 0; i < 4; ++i) sigaction(k_signals[i], &old[i], nullptr);

    state.gpr = data.gpr;
    state.rflags = (state.rflags & ~0xCD5ULL) | (data.flags & 0xCD5);
    state.fxsave = data.fxsave;
    if (!data.fault_pc) return std::nullopt;
    return OracleFault{static_cast<unsigned>(data.fault_vector), data.fault_pc - code_address()};
}

} // namespace coffer::tests
