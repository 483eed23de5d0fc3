// Faults, interrupts and NMI: what is delivered, double faults and shutdown. Intel SDM vol. 3, 6.7, 6.15 (table 6-5).
#include "vmm/accel/soft/system/transfer.hpp"

namespace coffer::vmm::soft {

namespace {

bool contributory(Vector vector) noexcept {
    return vector == Vector::DE || vector == Vector::TS || vector == Vector::NP || vector == Vector::SS ||
           vector == Vector::GP;
}

bool makes_double_fault(Vector first, Vector second) noexcept {
    if (contributory(first)) return contributory(second);
    return first == Vector::PF && (second == Vector::PF || contributory(second));
}

Event event_of(Cpu const& cpu, Fault const& fault) noexcept {
    bool const trap = fault.vector == Vector::DB || fault.vector == Vector::BP || fault.vector == Vector::OF ||
                      fault.vector == Vector::DF || fault.vector == Vector::NMI;
    return {.vector = static_cast<uint8_t>(fault.vector),
            .software = fault.software,
            .external = fault.external,
            .has_error = fault.has_error,
            .error = fault.error,
            .return_rip = cpu.rip,
            .resume = !trap && !fault.software};
}

} // namespace

Step deliver_fault(Cpu& cpu) noexcept {
    Fault current = cpu.fault;
    for (;;) {
        if (current.vector == Vector::PF) cpu.cr2 = current.cr2;
        if (deliver_event(cpu, event_of(cpu, current))) {
            if (current.vector == Vector::DB) cpu.debug.dr7 &= ~bit(13); // GD
            return Step::Leave;
        }
        if (current.vector == Vector::DF) return Step::Shutdown;
        if (cpu.fault.vector == Vector::PF) cpu.cr2 = cpu.fault.cr2;
        if (!current.software && makes_double_fault(current.vector, cpu.fault.vector)) {
            cpu.fault = Fault{.vector = Vector::DF, .has_error = true};
        }
        current = cpu.fault;
    }
}

Step deliver_interrupt(Cpu& cpu, uint8_t vector) noexcept {
    if (deliver_event(cpu, {.vector = vector, .external = true, .return_rip = cpu.rip})) return Step::Leave;
    return deliver_fault(cpu); // interrupts are benign: the fault is handled by itself
}

Step deliver_nmi(Cpu& cpu) noexcept {
    Event event{.vector = static_cast<uint8_t>(Vector::NMI), .external = true, .return_rip = cpu.rip};
    if (deliver_event(cpu, event)) {
        cpu.nmi_blocked = true;
        return Step::Leave;
    }
    return deliver_fault(cpu);
}

} // namespace coffer::vmm::soft
