// Executes one instruction in C++: plain ones through NativeStep with their memory operand in a buffer, the rest
// through execute_system(). The translator's slow path, and the whole CPU in 16-bit and segmented code.
#pragma once

#include <optional>

#include "vmm/accel/soft/cpu.hpp"
#include "vmm/accel/soft/translate/decode.hpp"
#include "vmm/accel/soft/translate/native_step.hpp"

namespace coffer::vmm::soft {

// What an instruction that uses the FPU raises while the control registers forbid it.
std::optional<Vector> fpu_fault(uint64_t cr0, uint64_t cr4, FpuUse use) noexcept;

class Interpreter {
public:
    explicit Interpreter(NativeStep& native) : m_native(native) {}

    // Fetches, decodes and executes the instruction at Cpu::rip.
    Step step(Cpu& cpu) noexcept;

    // Executes `decoded`, which is at Cpu::rip, as execute_system() would: Step::Next or Leave with Cpu::rip moved on,
    // Step::Fault with nothing changed.
    Step execute(Cpu& cpu, Decoded const& decoded) noexcept;

    // Reads and decodes the instruction at Cpu::rip. False: Cpu::fault says why.
    bool fetch(Cpu& cpu, Decoded& to) noexcept;

private:
    Step execute_plain(Cpu& cpu, Decoded const& d) noexcept;

    NativeStep& m_native;
};

} // namespace coffer::vmm::soft
