// Runs one plain instruction on the host CPU: its registers, flags and FPU state are given, its memory operand is a
// buffer. Shared by the software CPU's slow path, the completion of instructions that KVM's emulator refuses, and the
// native side of the differential tests.
//
//   Decoded d;
//   if (decode(64, bytes, d) != DecodeStatus::Ok || d.cls != InsnClass::Plain) ...   // not for native_step
//   uint64_t offset = effective_offset(d, state.gpr, rip + d.length());              // where d.memory.present
//   ... check that d.memory.write may be done; fill `operand` with d.memory.size bytes where d.memory.read ...
//   auto vector = stepper.run(d, rip + d.length(), linear, state, operand);
//   ... vector: deliver it, at the instruction; else: store `operand` back where d.memory.write; RIP moves on ...
//
// One object belongs to one thread at a time. The FPU must be enabled as far as the guest's control registers allow
// (Decoded::fpu says what the instruction needs): that is the caller's to check, before.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "vmm/accel/soft/translate/decode.hpp"

namespace coffer::vmm::soft {

struct NativeRegisters {
    std::array<uint64_t, 16> gpr{};    // Gpr's order
    uint64_t rflags = 2;               // CF, PF, AF, ZF, SF, DF and OF are used and changed, the rest is kept
    std::array<uint8_t, 512> fxsave{}; // used where Decoded::fpu is not None
};

class NativeStep {
public:
    static Result<std::unique_ptr<NativeStep>> create();
    ~NativeStep();
    NativeStep(NativeStep const&) = delete;
    NativeStep& operator=(NativeStep const&) = delete;

    // Runs `d`, which is Plain. `next_rip` is the address behind it. `operand` has d.memory.size bytes (or is empty);
    // `linear` is the operand's linear address, of which the low bits matter (alignment faults, as #GP). Nothing: done,
    // state and operand changed. A vector (#DE, #UD, #GP with error 0, #MF, #AC, #XM): the registers and the operand
    // are unchanged; fxsave may have gained exception flags.
    std::optional<Vector> run(Decoded const& d, uint64_t next_rip, uint64_t linear, NativeRegisters& state,
                              std::span<uint8_t> operand) noexcept;

    // The same on registers that lie elsewhere.
    std::optional<Vector> run(Decoded const& d, uint64_t next_rip, uint64_t linear, std::array<uint64_t, 16>& gpr,
                              uint64_t& rflags, std::array<uint8_t, 512>& fxsave, std::span<uint8_t> operand) noexcept;

private:
    struct Impl;
    explicit NativeStep(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> m_impl;
};

// Flags that live in the host's EFLAGS while guest code runs: CF, PF, AF, ZF, SF, DF, OF.
constexpr uint64_t k_native_flags = 0xCD5;

} // namespace coffer::vmm::soft
