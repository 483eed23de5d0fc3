// MSR policy: those that Linux, OVMF and Windows use of the processor that CPUID describes. Intel SDM vol. 4 (335592).
//
// IA32_SPEC_CTRL, IA32_PRED_CMD: accepted and without effect. Translated guest code shares the host's predictors with
// itself at every privilege level: this backend promises no protection of the guest's kernel from speculative side
// channels of the guest's own programs.
#include "vmm/accel/soft/system/msrs.hpp"

#include <optional>

#include "base/log.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr uint32_t IA32_TIME_STAMP_COUNTER = 0x10, IA32_PLATFORM_ID = 0x17, IA32_APIC_BASE = 0x1B;
constexpr uint32_t IA32_FEATURE_CONTROL = 0x3A, IA32_TSC_ADJUST = 0x3B, IA32_SPEC_CTRL = 0x48, IA32_PRED_CMD = 0x49;
constexpr uint32_t IA32_BIOS_UPDT_TRIG = 0x79, IA32_BIOS_SIGN_ID = 0x8B, MSR_PLATFORM_INFO = 0xCE, IA32_MTRRCAP = 0xFE;
constexpr uint32_t IA32_ARCH_CAPABILITIES = 0x10A, MSR_MISC_FEATURES_ENABLES = 0x140, IA32_SYSENTER_CS = 0x174;
constexpr uint32_t IA32_SYSENTER_ESP = 0x175, IA32_SYSENTER_EIP = 0x176, IA32_MCG_CAP = 0x179, IA32_MCG_STATUS = 0x17A;
constexpr uint32_t IA32_MISC_ENABLE = 0x1A0, IA32_DEBUGCTL = 0x1D9, IA32_MTRR_PHYSBASE0 = 0x200, IA32_PAT = 0x277;
constexpr uint32_t IA32_MTRR_FIX64K_00000 = 0x250, IA32_MTRR_FIX16K_80000 = 0x258, IA32_MTRR_FIX4K_C0000 = 0x268;
constexpr uint32_t IA32_MTRR_DEF_TYPE = 0x2FF, IA32_TSC_DEADLINE = 0x6E0, k_x2apic_first = 0x800, k_x2apic_last = 0x8FF;
constexpr uint32_t IA32_EFER = 0xC0000080, IA32_STAR = 0xC0000081, IA32_LSTAR = 0xC0000082, IA32_CSTAR = 0xC0000083;
constexpr uint32_t IA32_FMASK = 0xC0000084, IA32_FS_BASE = 0xC0000100, IA32_GS_BASE = 0xC0000101;
constexpr uint32_t IA32_KERNEL_GS_BASE = 0xC0000102, IA32_TSC_AUX = 0xC0000103;

// RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO,
// PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: none of the guest's own mitigations would reach the host CPU through the
// translator, so that asking for them would cost time and give nothing (see above).
constexpr uint64_t k_arch_capabilities = bit(0) | bit(1) | bit(3) | bit(4) | bit(5) | bit(6) | bit(8) | bit(13) |
                                         bit(14) | bit(15) | bit(20) | bit(24) | bit(26) | bit(27) | bit(62);
constexpr uint64_t k_misc_enable_fixed = bit(11) | bit(12); // no branch trace storage, no PEBS
constexpr uint64_t k_mtrr_cap = 0x508;                      // 8 variable ranges, fixed ranges, write combining

struct Constant {
    uint32_t index;
    uint64_t value;
    bool zero_writes; // writes of 0 are ignored, others fault
};
constexpr std::array k_constants{
    Constant{IA32_PLATFORM_ID, 0, false},
    Constant{IA32_FEATURE_CONTROL, 1, false}, // locked: no VMX, no SGX
    Constant{IA32_BIOS_SIGN_ID, uint64_t{1} << 32, true},
    Constant{MSR_PLATFORM_INFO, 0, false},
    Constant{IA32_MTRRCAP, k_mtrr_cap, false},
    Constant{IA32_ARCH_CAPABILITIES, k_arch_capabilities, false},
    Constant{MSR_MISC_FEATURES_ENABLES, 0, true},
    Constant{IA32_MCG_CAP, 0, false}, // no banks
    Constant{IA32_MCG_STATUS, 0, true},
    Constant{IA32_DEBUGCTL, 0, true},
};

Constant const* find_constant(uint32_t index) noexcept {
    for (Constant const& constant : k_constants) {
        if (constant.index == index) return &constant;
    }
    return nullptr;
}

// 0 UC, 1 WC, 4 WT, 5 WP, 6 WB; PAT has 7 (UC-) as well.
bool memory_type_valid(uint64_t type, bool pat) noexcept {
    return type <= 1 || (type >= 4 && type <= (pat ? 7U : 6U));
}

bool memory_types_valid(uint64_t value, bool pat) noexcept {
    for (unsigned i = 0; i < 64; i += 8) {
        if (!memory_type_valid((value >> i) & 0xFF, pat)) return false;
    }
    return true;
}

std::optional<size_t> fixed_mtrr(uint32_t index) noexcept {
    if (index == IA32_MTRR_FIX64K_00000) return 0;
    if (index == IA32_MTRR_FIX16K_80000 || index == IA32_MTRR_FIX16K_80000 + 1)
        return 1 + (index - IA32_MTRR_FIX16K_80000);
    if (index >= IA32_MTRR_FIX4K_C0000 && index < IA32_MTRR_FIX4K_C0000 + 8) return 3 + (index - IA32_MTRR_FIX4K_C0000);
    return std::nullopt;
}

std::optional<size_t> variable_mtrr(uint32_t index) noexcept {
    if (index >= IA32_MTRR_PHYSBASE0 && index < IA32_MTRR_PHYSBASE0 + 16) return index - IA32_MTRR_PHYSBASE0;
    return std::nullopt;
}

// Registers that are a member and nothing else to the reader.
uint64_t* plain_register(Cpu& cpu, uint32_t index) noexcept {
    if (auto at = fixed_mtrr(index)) return &cpu.mtrr_fixed[*at];
    if (auto at = variable_mtrr(index)) return &cpu.mtrr_variable[*at];
    switch (index) {
    case IA32_TSC_ADJUST: return &cpu.tsc_adjust;
    case IA32_SPEC_CTRL: return &cpu.spec_ctrl;
    case IA32_SYSENTER_CS: return &cpu.sysenter_cs;
    case IA32_SYSENTER_ESP: return &cpu.sysenter_esp;
    case IA32_SYSENTER_EIP: return &cpu.sysenter_eip;
    case IA32_MISC_ENABLE: return &cpu.misc_enable;
    case IA32_PAT: return &cpu.pat;
    case IA32_MTRR_DEF_TYPE: return &cpu.mtrr_def_type;
    case IA32_STAR: return &cpu.star;
    case IA32_LSTAR: return &cpu.lstar;
    case IA32_CSTAR: return &cpu.cstar;
    case IA32_FMASK: return &cpu.sfmask;
    case IA32_KERNEL_GS_BASE: return &cpu.kernel_gs_base;
    case IA32_TSC_AUX: return &cpu.tsc_aux;
    default: return nullptr;
    }
}

bool value_valid(uint32_t index, uint64_t value) noexcept {
    if (fixed_mtrr(index)) return memory_types_valid(value, false);
    if (auto at = variable_mtrr(index)) {
        uint64_t const reserved = ~k_physical_mask | ((*at & 1) ? 0x7FF : 0xF00);
        return !(value & reserved) && ((*at & 1) || memory_type_valid(value & 0xFF, false));
    }
    switch (index) {
    case IA32_SPEC_CTRL: return !(value & ~(uint64_t{7} | bit(10))); // IBRS, STIBP, SSBD, BHI_DIS_S
    case IA32_SYSENTER_ESP:
    case IA32_SYSENTER_EIP:
    case IA32_LSTAR:
    case IA32_CSTAR:
    case IA32_KERNEL_GS_BASE: return is_canonical(value);
    case IA32_MISC_ENABLE: return !(value & ~(k_misc_enable_fixed | 1));
    case IA32_PAT: return memory_types_valid(value, true);
    case IA32_MTRR_DEF_TYPE: return !(value & ~uint64_t{0xCFF}) && memory_type_valid(value & 0xFF, false);
    case IA32_SYSENTER_CS:
    case IA32_FMASK:
    case IA32_TSC_AUX: return value >> 32 == 0;
    default: return true;
    }
}

bool write_efer(Cpu& cpu, uint64_t value) noexcept {
    if (value & ~(k_efer_writable | k_efer_lma)) return false;
    uint64_t const changed = (cpu.efer ^ value) & k_efer_writable;
    if ((changed & k_efer_lme) && (cpu.cr0 & k_cr0_pg)) return false;
    cpu.efer = (cpu.efer & k_efer_lma) | (value & k_efer_writable);
    if (changed & k_efer_nxe) flush_tlb_all(cpu);
    update_mode(cpu);
    return true;
}

void write_segment_base(Cpu& cpu, uint32_t index, uint64_t value) noexcept {
    bool const fs = index == IA32_FS_BASE;
    cpu.segment(fs ? SegmentName::Fs : SegmentName::Gs).base = value;
    cpu.thread_bases[fs ? 0 : 1] = value;
}

void log_unknown(char const* what, uint32_t index, uint64_t value) noexcept {
    static log::RateLimit limit;
    if (limit.allow()) log::info("soft: guest {} of unknown MSR {:#x} (value {:#x}): #GP", what, index, value);
}

} // namespace

bool read_msr(Cpu& cpu, uint32_t index, uint64_t& value) noexcept {
    if (auto const* constant = find_constant(index)) {
        value = constant->value;
        return true;
    }
    if (auto const* plain = plain_register(cpu, index)) {
        value = *plain;
        if (index == IA32_MISC_ENABLE) value |= k_misc_enable_fixed;
        return true;
    }
    if (index >= k_x2apic_first && index <= k_x2apic_last) {
        return cpu.interrupts && cpu.interrupts->read_x2apic(index, value);
    }
    switch (index) {
    case IA32_TIME_STAMP_COUNTER: value = guest_tsc(cpu); return true;
    case IA32_APIC_BASE: value = cpu.interrupts ? cpu.interrupts->read_apic_base() : 0xFEE00900; return true;
    case IA32_TSC_DEADLINE: value = cpu.interrupts ? cpu.interrupts->read_tsc_deadline() : 0; return true;
    case IA32_EFER: value = cpu.efer; return true;
    case IA32_FS_BASE: value = cpu.segment(SegmentName::Fs).base; return true;
    case IA32_GS_BASE: value = cpu.segment(SegmentName::Gs).base; return true;
    default: log_unknown("read", index, 0); return false;
    }
}

bool write_msr(Cpu& cpu, uint32_t index, uint64_t value) noexcept {
    if (auto const* constant = find_constant(index)) return constant->zero_writes && value == 0;
    if (index == IA32_TSC_ADJUST) {
        cpu.tsc_offset += value - cpu.tsc_adjust;
        cpu.tsc_adjust = value;
        return true;
    }
    if (auto* plain = plain_register(cpu, index)) {
        if (!value_valid(index, value)) return false;
        *plain = value;
        return true;
    }
    if (index >= k_x2apic_first && index <= k_x2apic_last) {
        return cpu.interrupts && cpu.interrupts->write_x2apic(index, value);
    }
    switch (index) {
    case IA32_TIME_STAMP_COUNTER: {
        uint64_t const change = value - guest_tsc(cpu);
        cpu.tsc_offset += change;
        cpu.tsc_adjust += change; // SDM vol. 3, 17.17.3
        return true;
    }
    case IA32_APIC_BASE: return cpu.interrupts && cpu.interrupts->write_apic_base(value);
    case IA32_PRED_CMD: return !(value & ~uint64_t{1});
    case IA32_BIOS_UPDT_TRIG: return true; // microcode updates are taken and ignored
    case IA32_TSC_DEADLINE:
        if (cpu.interrupts) cpu.interrupts->write_tsc_deadline(value);
        return true;
    case IA32_EFER: return write_efer(cpu, value);
    case IA32_FS_BASE:
    case IA32_GS_BASE:
        if (!is_canonical(value)) return false;
        write_segment_base(cpu, index, value);
        return true;
    default: log_unknown("write", index, value); return false;
    }
}

std::vector<MsrValue> save_msrs(Cpu const& cpu) {
    constexpr std::array indices{IA32_TSC_ADJUST,   IA32_SPEC_CTRL,     IA32_SYSENTER_CS, IA32_SYSENTER_ESP,
                                 IA32_SYSENTER_EIP, IA32_MISC_ENABLE,   IA32_PAT,         IA32_MTRR_DEF_TYPE,
                                 IA32_STAR,         IA32_LSTAR,         IA32_CSTAR,       IA32_FMASK,
                                 IA32_TSC_AUX,      IA32_KERNEL_GS_BASE};
    // plain_register() hands out what save only reads.
    auto& source = const_cast<Cpu&>(cpu);
    std::vector<MsrValue> values;
    auto save = [&](uint32_t index) { values.push_back({.index = index, .value = *plain_register(source, index)}); };
    for (uint32_t index : indices) save(index);
    for (uint32_t i = 0; i < 16; ++i) save(IA32_MTRR_PHYSBASE0 + i);
    save(IA32_MTRR_FIX64K_00000);
    for (uint32_t i = 0; i < 2; ++i) save(IA32_MTRR_FIX16K_80000 + i);
    for (uint32_t i = 0; i < 8; ++i) save(IA32_MTRR_FIX4K_C0000 + i);
    values.push_back({.index = IA32_TIME_STAMP_COUNTER, .value = guest_tsc(cpu)});
    return values;
}

bool load_msr(Cpu& cpu, uint32_t index, uint64_t value) noexcept {
    if (auto const* constant = find_constant(index)) return constant->value == value;
    if (auto* plain = plain_register(cpu, index)) {
        if (!value_valid(index, value)) return false;
        *plain = value;
        return true;
    }
    switch (index) {
    case IA32_TIME_STAMP_COUNTER: cpu.tsc_offset += value - guest_tsc(cpu); return true;
    case IA32_APIC_BASE:
    case IA32_TSC_DEADLINE: return !cpu.interrupts || write_msr(cpu, index, value);
    case IA32_EFER: return value == cpu.efer;
    case IA32_FS_BASE:
    case IA32_GS_BASE: return write_msr(cpu, index, value);
    default: return false;
    }
}

} // namespace coffer::vmm::soft
