// Bits and small words of the architecture that several files of system/ use. Intel SDM vol. 3 (325384-083), 2.3, 2.5,
// 2.2.1; vol. 1, 3.4.3.
#pragma once

#include "vmm/accel/soft/cpu.hpp"

namespace coffer::vmm::soft {

constexpr uint64_t bit(unsigned number) noexcept {
    return uint64_t{1} << number;
}

// EFLAGS.
constexpr uint64_t k_cf = bit(0), k_fixed_flag = bit(1), k_pf = bit(2), k_af = bit(4), k_zf = bit(6), k_sf = bit(7);
constexpr uint64_t k_tf = bit(8), k_if = bit(9), k_df = bit(10), k_of = bit(11), k_iopl = bit(12) | bit(13);
constexpr uint64_t k_nt = bit(14), k_rf = bit(16), k_vm = bit(17), k_ac = bit(18), k_vif = bit(19), k_vip = bit(20);
constexpr uint64_t k_id = bit(21);
constexpr uint64_t k_arithmetic_flags = k_cf | k_pf | k_af | k_zf | k_sf | k_of;
constexpr uint64_t k_flags_mask =
    k_arithmetic_flags | k_tf | k_if | k_df | k_iopl | k_nt | k_rf | k_vm | k_ac | k_vif | k_vip | k_id;

// CR0.
constexpr uint64_t k_cr0_pe = bit(0), k_cr0_mp = bit(1), k_cr0_em = bit(2), k_cr0_ts = bit(3), k_cr0_et = bit(4);
constexpr uint64_t k_cr0_ne = bit(5), k_cr0_wp = bit(16), k_cr0_am = bit(18), k_cr0_nw = bit(29), k_cr0_cd = bit(30);
constexpr uint64_t k_cr0_pg = bit(31);
constexpr uint64_t k_cr0_writable =
    k_cr0_pe | k_cr0_mp | k_cr0_em | k_cr0_ts | k_cr0_ne | k_cr0_wp | k_cr0_am | k_cr0_nw | k_cr0_cd | k_cr0_pg;

// CR4, and those of its bits that the CPUID policy offers.
constexpr uint64_t k_cr4_tsd = bit(2), k_cr4_de = bit(3), k_cr4_pse = bit(4), k_cr4_pae = bit(5), k_cr4_mce = bit(6);
constexpr uint64_t k_cr4_pge = bit(7), k_cr4_pce = bit(8), k_cr4_osfxsr = bit(9), k_cr4_osxmmexcpt = bit(10);
constexpr uint64_t k_cr4_umip = bit(11), k_cr4_la57 = bit(12), k_cr4_fsgsbase = bit(16), k_cr4_pcide = bit(17);
constexpr uint64_t k_cr4_osxsave = bit(18), k_cr4_smep = bit(20), k_cr4_smap = bit(21);
constexpr uint64_t k_cr4_writable = k_cr4_tsd | k_cr4_de | k_cr4_pse | k_cr4_pae | k_cr4_mce | k_cr4_pge | k_cr4_pce |
                                    k_cr4_osfxsr | k_cr4_osxmmexcpt | k_cr4_umip | k_cr4_fsgsbase | k_cr4_smep |
                                    k_cr4_smap;

// IA32_EFER.
constexpr uint64_t k_efer_sce = bit(0), k_efer_lme = bit(8), k_efer_lma = bit(10), k_efer_nxe = bit(11);
constexpr uint64_t k_efer_writable = k_efer_sce | k_efer_lme | k_efer_nxe;

constexpr unsigned k_physical_address_bits = 40;
constexpr uint64_t k_physical_mask = bit(k_physical_address_bits) - 1;

// Segment::attributes.
constexpr uint16_t k_segment_type = 0x0F, k_segment_accessed = 1, k_segment_writable = 2, k_segment_expand_down = 4;
constexpr uint16_t k_segment_readable = 2, k_segment_conforming = 4, k_segment_code = 8, k_segment_s = 0x10;
constexpr uint16_t k_segment_present = 0x80, k_segment_long = 0x2000, k_segment_db = 0x4000, k_segment_g = 0x8000;
constexpr unsigned segment_dpl(uint16_t attributes) noexcept {
    return (attributes >> 5) & 3U;
}

// 48-bit linear addresses.
constexpr bool is_canonical(uint64_t linear) noexcept {
    return static_cast<uint64_t>(static_cast<int64_t>(linear << 16) >> 16) == linear;
}

constexpr uint64_t mask_bits(unsigned bits) noexcept {
    return bits >= 64 ? ~uint64_t{0} : bit(bits) - 1;
}
constexpr uint64_t sign_extend(uint64_t value, unsigned bits) noexcept {
    return bits >= 64 ? value : static_cast<uint64_t>(static_cast<int64_t>(value << (64 - bits)) >> (64 - bits));
}

// For `return raise(...)` in functions where false means Cpu::fault.
inline bool raise(Cpu& cpu, Vector vector) noexcept {
    cpu.fault = Fault{.vector = vector};
    return false;
}
inline bool raise(Cpu& cpu, Vector vector, uint32_t error) noexcept {
    cpu.fault = Fault{.vector = vector, .has_error = true, .error = error};
    return false;
}
inline Step fault(Cpu& cpu, Vector vector) noexcept {
    raise(cpu, vector);
    return Step::Fault;
}
inline Step fault(Cpu& cpu, Vector vector, uint32_t error) noexcept {
    raise(cpu, vector, error);
    return Step::Fault;
}

} // namespace coffer::vmm::soft
