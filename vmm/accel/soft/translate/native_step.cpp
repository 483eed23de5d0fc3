#include "vmm/accel/soft/translate/native_step.hpp"

#include <cstring>
#include <new>
#include <string>
#include <unordered_map>

#include "vmm/accel/soft/translate/code_memory.hpp"
#include "vmm/accel/soft/translate/host_faults.hpp"
#include "vmm/accel/soft/translate/reencode.hpp"
#include "vmm/accel/soft/translate/verifier.hpp"

namespace coffer::vmm::soft {

namespace {

// What the state pointer points at while a stepped instruction runs. Offsets are known to the assembly below.
struct alignas(64) NativeState {
    std::array<uint64_t, 16> gpr;
    uint64_t flags;
    uint64_t use_fpu;
    uint64_t operand; // address of the buffer: r14
    uint64_t entry;
    uint64_t exit;
    uint64_t host_rsp;
    uint64_t fault_vector;
    uint64_t fault_address;
    std::array<uint64_t, 2> spare;
    alignas(64) std::array<uint8_t, 512> fxsave;
    alignas(64) std::array<uint8_t, 64 + 128> buffer;
};
static_assert(offsetof(NativeState, gpr) == k_gpr_offset);
static_assert(offsetof(NativeState, flags) == 128);
static_assert(offsetof(NativeState, use_fpu) == 136);
static_assert(offsetof(NativeState, operand) == 144);
static_assert(offsetof(NativeState, entry) == 152);
static_assert(offsetof(NativeState, exit) == 160);
static_assert(offsetof(NativeState, host_rsp) == 168);
static_assert(offsetof(NativeState, fxsave) == 256);

constexpr size_t k_stack = 64 * 1024;
constexpr size_t k_code = 256 * 1024;
constexpr size_t k_longest = 256;

constexpr uint64_t k_no_fault = ~0ULL;

} // namespace

// Enters with a NativeState in rdi; the stepped code leaves through NativeState::exit, and so does a host fault.
extern "C" {
void coffer_native_enter(void* state);
void coffer_native_exit();
}
asm(R"(
    .text
    .p2align 4
    .globl coffer_native_enter
    .hidden coffer_native_enter
    .type coffer_native_enter, @function
coffer_native_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, 168(%rdi)
    mov %rdi, %rsp
    cmpq $0, 136(%rsp)
    je 1f
    fxrstor64 256(%rsp)
1:  pushq 128(%rsp)
    popfq
    mov 0(%rsp), %rax
    mov 8(%rsp), %rcx
    mov 16(%rsp), %rdx
    mov 24(%rsp), %rbx
    mov 32(%rsp), %r13
    mov 40(%rsp), %rbp
    mov 48(%rsp), %rsi
    mov 56(%rsp), %rdi
    mov 64(%rsp), %r8
    mov 72(%rsp), %r9
    mov 80(%rsp), %r10
    mov 88(%rsp), %r11
    mov 96(%rsp), %r12
    mov 144(%rsp), %r14
    jmp *152(%rsp)
    .size coffer_native_enter, . - coffer_native_enter

    .p2align 4
    .globl coffer_native_exit
    .hidden coffer_native_exit
    .type coffer_native_exit, @function
coffer_native_exit:
    mov %rax, 0(%rsp)
    mov %rcx, 8(%rsp)
    mov %rdx, 16(%rsp)
    mov %rbx, 24(%rsp)
    mov %r13, 32(%rsp)
    mov %rbp, 40(%rsp)
    mov %rsi, 48(%rsp)
    mov %rdi, 56(%rsp)
    mov %r8, 64(%rsp)
    mov %r9, 72(%rsp)
    mov %r10, 80(%rsp)
    mov %r11, 88(%rsp)
    mov %r12, 96(%rsp)
    pushfq
    popq 128(%rsp)
    cld
    cmpq $0, 136(%rsp)
    je 1f
    fxsave64 256(%rsp)
    fninit
    pushq $0x1f80
    ldmxcsr (%rsp)
    pop %rax
1:  mov 168(%rsp), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .size coffer_native_exit, . - coffer_native_exit
)");

struct NativeStep::Impl {
    CodeMemory code;
    GuardedMemory memory;
    NativeState* state = nullptr;
    size_t used = 0;
    std::unordered_map<std::string, uint8_t const*> known;
    HostFaultTarget target;

    Impl(CodeMemory c, GuardedMemory m) : code(std::move(c)), memory(std::move(m)) {
        state = new (memory.data() + k_stack) NativeState{};
        // SAFETY: addresses of code, stored for the assembly above and compared with faulting addresses.
        state->exit = reinterpret_cast<uint64_t>(&coffer_native_exit);
        target.code_begin = reinterpret_cast<uintptr_t>(code.executable());
        target.code_end = target.code_begin + code.size();
        target.landing = reinterpret_cast<uintptr_t>(&coffer_native_exit);
        target.vector = &state->fault_vector;
        target.address = &state->fault_address;
    }

    uint8_t const* code_for(Decoded const& d, uint64_t next_rip) {
        std::string key(reinterpret_cast<char const*>(d.bytes.data()), d.length()); // SAFETY: bytes as a map's key
        key.push_back(static_cast<char>(d.code_bits));
        if (d.insn.mnemonic == ZYDIS_MNEMONIC_LEA) // RIP-relative forms hold the address
            key.append(reinterpret_cast<char const*>(&next_rip), sizeof next_rip); // SAFETY: as above
        if (auto it = known.find(key); it != known.end()) return it->second;
        if (code.size() - used < k_longest) {
            known.clear();
            used = 0;
        }
        std::array<uint8_t, k_longest> buffer;
        Emitter e(buffer.data(), buffer.size());
        emit_plain(e, d, next_rip, offsetof(NativeState, spare));
        e.jump_state(offsetof(NativeState, exit));
        StepLayout layout{.spare = offsetof(NativeState, spare), .exit = offsetof(NativeState, exit)};
        std::span<uint8_t const> made(buffer.data(), e.size());
        if (auto refused = verify_step(made, layout, d.memory.size)) reject(made, *refused);
        uint8_t const* at = code.executable() + used;
        std::memcpy(code.writable() + used, buffer.data(), e.size());
        used += (e.size() + 15) & ~size_t{15};
        known.emplace(std::move(key), at);
        return at;
    }
};

NativeStep::NativeStep(std::unique_ptr<Impl> impl) : m_impl(std::move(impl)) {}
NativeStep::~NativeStep() = default;

Result<std::unique_ptr<NativeStep>> NativeStep::create() {
    install_host_fault_handlers();
    CodeMemory code = TRY(CodeMemory::create(k_code));
    GuardedMemory memory = TRY(GuardedMemory::create(k_stack + ((sizeof(NativeState) + 4095) & ~size_t{4095})));
    return std::unique_ptr<NativeStep>(new NativeStep(std::make_unique<Impl>(std::move(code), std::move(memory))));
}

std::optional<Vector> NativeStep::run(Decoded const& d, uint64_t next_rip, uint64_t linear, NativeRegisters& registers,
                                      std::span<uint8_t> operand) noexcept {
    return run(d, next_rip, linear, registers.gpr, registers.rflags, registers.fxsave, operand);
}

std::optional<Vector> NativeStep::run(Decoded const& d, uint64_t next_rip, uint64_t linear,
                                      std::array<uint64_t, 16>& gpr, uint64_t& rflags, std::array<uint8_t, 512>& fxsave,
                                      std::span<uint8_t> operand) noexcept {
    COFFER_ASSERT(d.cls == InsnClass::Plain);
    COFFER_ASSERT(operand.size() == (d.memory.present ? d.memory.size : 0));
    NativeState& state = *m_impl->state;
    uint8_t* buffer = state.buffer.data() + (linear & 63);
    bool fpu = d.fpu != FpuUse::None;
    if (fpu) {
        state.fxsave = fxsave;
        // Reserved MXCSR bits would fault in FXRSTOR.
        state.fxsave[26] = state.fxsave[27] = 0;
    }
    if (!operand.empty()) std::memcpy(buffer, operand.data(), operand.size());
    state.gpr = gpr;
    state.flags = (rflags & k_native_flags) | 0x202;
    state.use_fpu = fpu;
    state.operand = reinterpret_cast<uint64_t>(buffer); // SAFETY: loaded into r14 by the assembly above
    state.entry = reinterpret_cast<uint64_t>(m_impl->code_for(d, next_rip)); // SAFETY: jumped to by the same
    state.fault_vector = k_no_fault;
    {
        HostFaultScope scope(m_impl->target);
        coffer_native_enter(&state);
    }
    if (fpu) {
        // FIP, FDP and their selectors are the host's.
        std::memset(state.fxsave.data() + 8, 0, 16);
        fxsave = state.fxsave;
    }
    if (state.fault_vector != k_no_fault) return static_cast<Vector>(state.fault_vector);
    rflags = (rflags & ~k_native_flags) | (state.flags & k_native_flags);
    gpr = state.gpr;
    if (d.scrub && d.fpu == FpuUse::X87) {
        // FNSTENV and FNSAVE store FIP, FCS, FOP and FDP behind the three control words (SDM vol. 1, 8.1.10).
        size_t begin = d.insn.operand_width == 16 ? 6 : 12;
        size_t end = d.insn.operand_width == 16 ? 14 : 28;
        std::memset(buffer + begin, 0, end - begin);
    }
    if (!operand.empty()) std::memcpy(operand.data(), buffer, operand.size());
    return std::nullopt;
}

} // namespace coffer::vmm::soft
