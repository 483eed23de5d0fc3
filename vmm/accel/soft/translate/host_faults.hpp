// Host CPU exceptions raised by emitted code, turned into landings instead of signals' deaths.
//
// A thread that is about to run emitted code puts a HostFaultTarget in place. Where the host CPU raises #DE, #BP, #OF,
// #UD, #GP, #MF, #AC or #XM at an address within the target's code, the signal handler notes vector and address and
// continues at the target's landing, with all registers as the instruction found them. Every other fault, page faults
// among them, goes to whoever handled the signal before, by default the end of the process.
#pragma once

#include <cstdint>

namespace coffer::vmm::soft {

struct HostFaultTarget {
    uintptr_t code_begin = 0, code_end = 0;
    uintptr_t landing = 0;
    uint64_t* vector = nullptr;  // written with the vector
    uint64_t* address = nullptr; // written with the faulting host address
};

// Installs the handlers once; any thread.
void install_host_fault_handlers() noexcept;

// Puts a target in place for this thread; restores the previous one at the end.
class HostFaultScope {
public:
    explicit HostFaultScope(HostFaultTarget const& target) noexcept;
    ~HostFaultScope();
    HostFaultScope(HostFaultScope const&) = delete;
    HostFaultScope& operator=(HostFaultScope const&) = delete;

private:
    HostFaultTarget const* m_previous;
};

} // namespace coffer::vmm::soft
