// The one lock of the emulated interrupt controllers (both 8259A, the IOAPIC, all local APICs).
//
// They are reached from the device side (register accesses and input lines, under the machine's device lock) and from
// the vCPU threads (CpuInterrupts, without it), and one call goes through several of them: a line raises a pin, which
// sends a message, which a local APIC accepts. So they share one lock, and the functions that need it held take the
// guard as evidence.
//
// Order: device lock, then this lock, then what Scheduler, Timer and CpuSignals lock inside. None of those calls back.
#pragma once

#include <mutex>

namespace coffer::devices {

class InterruptLock {
    friend class InterruptGuard;
    std::mutex m_mutex;
};

class [[nodiscard]] InterruptGuard {
public:
    explicit InterruptGuard(InterruptLock& lock) : m_guard(lock.m_mutex) {}

private:
    std::lock_guard<std::mutex> m_guard;
};

} // namespace coffer::devices
