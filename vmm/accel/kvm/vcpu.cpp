#include "vmm/accel/kvm/vcpu.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <sys/mman.h>
#include <utility>
#include <x86intrin.h>

#include "vmm/accel/kvm/msrs.hpp"

namespace coffer::vmm::kvm {

Result<RunArea> RunArea::map(Handle const& vcpu, size_t size) {
    void* area = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd(), 0);
    if (area == MAP_FAILED) return errno_error(errno, "cannot map a vCPU's run area");
    return RunArea(static_cast<kvm_run*>(area), size);
}

RunArea::RunArea(RunArea&& other) noexcept : m_run(std::exchange(other.m_run, nullptr)), m_size(other.m_size) {}

RunArea::~RunArea() {
    if (m_run) ::munmap(m_run, m_size);
}

MutBytes RunArea::bytes(uint64_t offset, size_t size) const {
    COFFER_ASSERT(offset <= m_size && size <= m_size - offset);
    // SAFETY: within the mapping, checked above.
    return {reinterpret_cast<std::byte*>(m_run) + offset, size};
}

int kick_signal() noexcept {
    return SIGRTMIN + 4;
}

Result<void> install_kick_signal() {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ::sigemptyset(&action.sa_mask); // no SA_RESTART: KVM_RUN must return
    if (::sigaction(kick_signal(), &action, nullptr) != 0) return errno_error(errno, "cannot install the kick signal");
    return {};
}

KvmVcpu::KvmVcpu(Handle vcpu, unsigned index, RunArea run, StateLayout layout, VcpuSurroundings const& surroundings)
    : m_vcpu(std::move(vcpu)), m_index(index), m_run(std::move(run)), m_layout(std::move(layout)),
      m_io(surroundings.io), m_tsc_offset(surroundings.tsc_offset) {}

Result<std::unique_ptr<KvmVcpu>> KvmVcpu::create(Handle vcpu, unsigned index, size_t run_area_size, StateLayout layout,
                                                 VcpuSurroundings const& surroundings) {
    auto run = TRY(RunArea::map(vcpu, run_area_size));
    std::unique_ptr<KvmVcpu> self(new KvmVcpu(std::move(vcpu), index, std::move(run), std::move(layout), surroundings));
    self->m_completion = InstructionCompletion::create(self->m_vcpu, index, surroundings.memory, surroundings.io,
                                                       surroundings.completion);
    self->m_power_on = TRY(read_state(self->m_vcpu, self->m_layout));
    auto const architectural = reset_cpu_state();
    auto& power_on = self->m_power_on;
    uint64_t signature = power_on.gpr[static_cast<size_t>(Gpr::Rdx)]; // KVM's reset put CPUID 1.EAX there
    auto msrs = std::move(power_on.msrs);
    auto local_apic = std::move(power_on.local_apic);
    auto activity = power_on.activity;
    power_on = architectural;
    power_on.gpr[static_cast<size_t>(Gpr::Rdx)] = signature;
    power_on.msrs = std::move(msrs);
    power_on.local_apic = std::move(local_apic);
    power_on.activity = activity;
    // KVM takes writes of several vCPUs' TSCs for attempts to synchronise them: it runs on over a reset.
    std::erase_if(power_on.msrs, [](auto const& value) { return value.index == msr::IA32_TSC; });
    TRY(self->update_tsc_offset());
    return self;
}

Result<void> KvmVcpu::update_tsc_offset() {
    if (m_index != 0) return {};
    constexpr uint32_t k_tsc[] = {msr::IA32_TSC};
    for (auto const& value : TRY(read_msrs(m_vcpu, k_tsc)))
        m_tsc_offset = static_cast<int64_t>(value.value - __rdtsc());
    return {};
}

void KvmVcpu::kick() noexcept {
    // run() clears immediate_exit before it looks at m_kicked: whichever order the two threads take, one is seen.
    m_kicked.store(true);
    m_run.set_immediate_exit(true);
    if (pid_t thread = m_thread.load(); thread != 0) ::tgkill(::getpid(), thread, kick_signal());
}

bool KvmVcpu::take_kick() noexcept {
    m_run.set_immediate_exit(false);
    return m_kicked.exchange(false);
}

// MSRs at their power-on values are left out, and put back where they are absent: most are of KVM's own making, and a
// state that does not use them can be restored on another host or backend.
Result<CpuState> KvmVcpu::get_state() {
    auto state = TRY(read_state(m_vcpu, m_layout));
    std::erase_if(state.msrs, [&](auto const& value) {
        return std::ranges::any_of(m_power_on.msrs, [&](auto const& initial) {
            return initial.index == value.index && initial.value == value.value;
        });
    });
    return state;
}

Result<void> KvmVcpu::set_state(CpuState const& state) {
    CpuState whole = state;
    for (auto const& initial : m_power_on.msrs) {
        bool present = std::ranges::any_of(state.msrs, [&](auto const& value) { return value.index == initial.index; });
        if (!present) whole.msrs.push_back(initial);
    }
    TRY(write_state(m_vcpu, m_layout, whole));
    // Tells a guest that uses KVM's clock that it stood still, so that its watchdogs do not bark; others refuse it.
    (void)m_vcpu.try_call(COFFER_KVM(KVM_KVMCLOCK_CTRL), 0UL);
    return update_tsc_offset();
}

Result<void> KvmVcpu::reset() {
    return write_state(m_vcpu, m_layout, m_power_on);
}

} // namespace coffer::vmm::kvm
