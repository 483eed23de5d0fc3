// Saving and restoring a machine as a whole.
//
// Order of saving: vCPUs stopped and their I/O finished, devices drained, then vCPUs, the backend's own devices and
// ours. Order of restoring: the backend's own devices, vCPUs (local APIC timers compare with the TSC), ours.
#include "vmm/machine/machine.hpp"

#include <algorithm>

#include "vmm/machine/controllers.hpp"

namespace coffer::vmm {

namespace {

constexpr uint32_t k_tsc_msr = 0x10; // IA32_TIME_STAMP_COUNTER

uint64_t ticks_of(Nanoseconds span, uint64_t hz) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>(Wide{static_cast<uint64_t>(span)} * hz / uint64_t{k_ns_per_s});
}

void move_tsc(CpuState& state, uint64_t by) {
    for (auto& msr : state.msrs)
        if (msr.index == k_tsc_msr) msr.value += by;
}

bool is_taking_interrupt(CpuState const& cpu) noexcept {
    return cpu.pending_event.kind == PendingEvent::Kind::Interrupt;
}

} // namespace

Result<MachineState> Machine::save_state(WithFirmware firmware) {
    COFFER_ASSERT(m_paused);
    MachineState state;
    auto& partition = *m_partition;
    state.backend = partition.capabilities().name;
    state.cpuid = read_guest_cpuid(partition);
    state.tsc_hz = partition.tsc_hz();
    state.physical_address_bits = static_cast<uint8_t>(partition.physical_address_bits());
    state.wall_ns = m_paused->wall;
    for (auto const& vcpu : m_vcpus->vcpus()) TRY(vcpu->get_state());
    TRY(m_platform->drain());
    for (auto const& vcpu : m_vcpus->vcpus()) {
        state.vcpus.push_back(TRY(vcpu->get_state()));
        // The host's TSC went on: the guest's is saved as of when all other clocks stopped.
        move_tsc(state.vcpus.back(), m_paused->guest_tsc - partition.guest_tsc());
    }
    state.partition = TRY(partition.save());
    TRY(m_platform->save(state));
    if (firmware == WithFirmware::Yes) {
        auto const code = m_platform->firmware_code();
        state.firmware_code.assign(code.begin(), code.end());
    }
    if (partition.capabilities().kernel_irqchip) TRY(controllers_to_units(state));
    return state;
}

Result<void> Machine::restore_state(MachineState const& state) {
    COFFER_ASSERT(!m_paused);
    TRY(check_cpu_fits(state, *m_partition));
    TRY(m_platform->check_fits(state));
    if (state.vcpus.size() != m_vcpus->vcpus().size())
        return make_error(ErrorCode::Corrupt, "the saved machine has {} CPUs' state for {} CPUs", state.vcpus.size(),
                          m_vcpus->vcpus().size());
    m_loop->freeze();
    // A host clock that was set back is no reason to turn a guest's back.
    Nanoseconds step = std::max<Nanoseconds>(0, wall_clock_ns() - state.wall_ns);
    auto vcpus = state.vcpus;
    auto partition = state.partition;
    if (m_partition->capabilities().kernel_irqchip) {
        TRY(controllers_from_units(state.units, vcpus, partition, step));
        TRY(m_partition->restore(partition, step));
    } else if (std::ranges::any_of(vcpus, is_taking_interrupt)) {
        return make_error(
            ErrorCode::Unsupported,
            "the saved machine (backend '{}') was taking an interrupt of the 8259A, which the backend '{}' "
            "cannot finish: resume it with --accel {}, and suspend it again",
            state.backend, m_partition->capabilities().name, state.backend);
    }
    for (size_t index = 0; index < vcpus.size(); ++index) {
        CpuState& cpu = vcpus[index];
        move_tsc(cpu, ticks_of(step, m_partition->tsc_hz()));
        TRY(m_vcpus->vcpus()[index]->set_state(cpu));
    }
    TRY(m_platform->restore(state));
    m_loop->thaw(step);
    // Its time is kept as a difference to the host's, so it is not stepped with the others.
    return m_platform->restore_clock(state);
}

} // namespace coffer::vmm
