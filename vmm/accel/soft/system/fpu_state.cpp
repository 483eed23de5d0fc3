// FXSAVE and FXRSTOR on Cpu::fxsave (Intel SDM vol. 1, 10.5).
//
// The last instruction and data pointers are always stored as zero: where guest instructions run on the host's FPU they
// would be host addresses. Images hold MXCSR_MASK 0xFFFF, so that they mean the same on every host.
#include <cstring>

#include "vmm/accel/soft/system/handlers.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr size_t k_pointers = 8, k_pointers_size = 16, k_mxcsr = 24, k_mxcsr_mask = 28;
constexpr uint32_t k_mxcsr_valid = 0xFFFF;

// XMM8-XMM15 exist in 64-bit mode alone; the bytes behind are not touched.
size_t image_size(Cpu const& cpu) noexcept {
    return cpu.mode.code_bits == 64 ? 416 : 288;
}

bool check(Cpu& cpu, Insn const& insn, Access access, uint64_t& linear) noexcept {
    if (cpu.cr0 & (k_cr0_em | k_cr0_ts)) return raise(cpu, Vector::NM);
    if (!operand_linear(cpu, insn, operand(insn, 0), 512, access, linear)) return false;
    return (linear & 15) == 0 || raise(cpu, Vector::GP, 0);
}

} // namespace

Step fxsave(Cpu& cpu, Insn const& insn) noexcept {
    uint64_t linear = 0;
    if (!check(cpu, insn, Access::Write, linear)) return Step::Fault;
    std::array<uint8_t, 512> image = cpu.fxsave;
    std::memset(image.data() + k_pointers, 0, k_pointers_size);
    std::memcpy(image.data() + k_mxcsr_mask, &k_mxcsr_valid, 4);
    if (!linear_write(cpu, linear, image.data(), image_size(cpu), current_privilege(cpu))) return Step::Fault;
    return done(cpu, insn);
}

Step fxrstor(Cpu& cpu, Insn const& insn) noexcept {
    uint64_t linear = 0;
    if (!check(cpu, insn, Access::Read, linear)) return Step::Fault;
    std::array<uint8_t, 512> image = cpu.fxsave;
    if (!linear_read(cpu, linear, image.data(), image_size(cpu), current_privilege(cpu))) return Step::Fault;
    uint32_t mxcsr = 0;
    std::memcpy(&mxcsr, image.data() + k_mxcsr, 4);
    if (mxcsr & ~k_mxcsr_valid) return fault(cpu, Vector::GP, 0);
    std::memset(image.data() + k_pointers, 0, k_pointers_size);
    cpu.fxsave = image;
    return done(cpu, insn);
}

} // namespace coffer::vmm::soft
