// Debug registers and the single-step trap. Intel SDM vol. 3, 17.2.
//
// Not emulated: breakpoints (DR0-DR3 hold what is written, DR7 enables nothing) and DEBUGCTL's branch tracing.
#include "vmm/accel/soft/system/handlers.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr uint64_t k_dr6_fixed = 0xFFFF0FF0, k_dr6_writable = 0xE00F, k_dr6_bd = bit(13), k_dr6_bs = bit(14);
constexpr uint64_t k_dr7_fixed = 0x400, k_dr7_writable = 0xFFFF2BFF, k_dr7_gd = bit(13);

// DR4 and DR5 are DR6 and DR7 unless CR4.DE makes them undefined. GD guards every access.
bool check(Cpu& cpu, unsigned& number) noexcept {
    if (number > 7 || ((number == 4 || number == 5) && (cpu.cr4 & k_cr4_de))) return raise(cpu, Vector::UD);
    if (!require_cpl0(cpu)) return false;
    if (cpu.debug.dr7 & k_dr7_gd) {
        cpu.debug.dr6 |= k_dr6_bd;
        return raise(cpu, Vector::DB);
    }
    if (number == 4 || number == 5) number += 2;
    return true;
}

} // namespace

bool read_dr(Cpu& cpu, unsigned number, uint64_t& value) noexcept {
    if (!check(cpu, number)) return false;
    value = number < 4 ? cpu.debug.address[number] : number == 6 ? cpu.debug.dr6 : cpu.debug.dr7;
    return true;
}

bool write_dr(Cpu& cpu, unsigned number, uint64_t value) noexcept {
    if (!check(cpu, number)) return false;
    if (number >= 6 && value >> 32) return raise(cpu, Vector::GP, 0);
    if (number < 4)
        cpu.debug.address[number] = value;
    else if (number == 6)
        cpu.debug.dr6 = k_dr6_fixed | (value & k_dr6_writable);
    else
        cpu.debug.dr7 = k_dr7_fixed | (value & k_dr7_writable);
    return true;
}

Step deliver_single_step(Cpu& cpu) noexcept {
    cpu.debug.dr6 |= k_dr6_bs;
    cpu.fault = Fault{.vector = Vector::DB};
    return deliver_fault(cpu);
}

} // namespace coffer::vmm::soft
