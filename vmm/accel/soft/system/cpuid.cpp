// CPUID policy: x86-64-v2 plus what the translator runs natively where the host has it, and what system/ emulates.
// Intel SDM vol. 2, CPUID.
//
// It describes a GenuineIntel family 6 model 0x6A on every host, because of what Linux and OVMF derive from it:
//   - leaf 0x15 gives Linux the exact TSC frequency, so that it need not calibrate against an emulated timer on a busy
//     host (it believes the leaf on Intel alone);
//   - IA32_ARCH_CAPABILITIES can say that no workaround for a hardware flaw is needed: no page-table isolation (a CR3
//     load for each system call), no retpolines, no VERW. Which protection that is about, msrs.cpp says;
//   - SYSCALL, SYSENTER, SYSRET and IRET in system/ follow the SDM where AMD differs.
// No XSAVE and no AVX: Linux and glibc then use FXSAVE. No PCID, VMX, SMX, SGX, MONITOR, PMU, RDPID, PKU, CET.
#include <cpuid.h>
#include <x86intrin.h>

#include <cstring>

#include "vmm/accel/soft/system/architecture.hpp"

namespace coffer::vmm::soft {

namespace {

constexpr uint32_t b(unsigned number) noexcept {
    return uint32_t{1} << number;
}

constexpr uint32_t k_signature = 0x000606A6;
constexpr uint32_t k_basic_leaves = 0x16, k_extended_leaves = 0x80000008, k_hypervisor_leaves = 0x40000010;

// Leaf 1. What runs natively is offered where the host has it too.
constexpr uint32_t k_1_ecx_native = b(0) | b(1) | b(9) | b(13) | b(19) | b(20) | b(23) | b(25) | b(30);
// SSE3, PCLMULQDQ, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT, AES, RDRAND
constexpr uint32_t k_1_ecx_emulated = b(21) | b(24) | b(31); // x2APIC, TSC deadline, hypervisor
// FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
constexpr uint32_t k_1_edx = b(0) | b(2) | b(3) | b(4) | b(5) | b(6) | b(7) | b(8) | b(9) | b(11) | b(12) | b(13) |
                             b(14) | b(15) | b(16) | b(17) | b(19) | b(23) | b(24) | b(25) | b(26);

// Leaf 7.
constexpr uint32_t k_7_ebx_native = b(18) | b(29); // RDSEED, SHA
constexpr uint32_t k_7_ebx_emulated = b(0) | b(1) | b(7) | b(9) | b(10) | b(20);
// FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, SMAP
constexpr uint32_t k_7_ecx = b(2); // UMIP
// SERIALIZE (Linux else serializes by an IRET, which costs six emulated instructions, for each place that it patches),
// IBRS and IBPB, STIBP, ARCH_CAPABILITIES
constexpr uint32_t k_7_edx = b(14) | b(26) | b(27) | b(29);

// Leaf 0x80000001: LAHF; SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
constexpr uint32_t k_ext_1_ecx = b(0);
constexpr uint32_t k_ext_1_edx = b(11) | b(20) | b(26) | b(27) | b(29);

struct HostFeatures {
    uint32_t leaf1_ecx = 0;
    uint32_t leaf7_ebx = 0;
};

HostFeatures const& host() noexcept {
    static HostFeatures const features = [] {
        HostFeatures found;
        uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
        if (__get_cpuid(1, &eax, &ebx, &ecx, &edx)) found.leaf1_ecx = ecx;
        if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) found.leaf7_ebx = ebx;
        return found;
    }();
    return features;
}

uint32_t word(char const* text, size_t index) noexcept {
    uint32_t value = 0;
    std::memcpy(&value, text + index * 4, 4);
    return value;
}

// Deterministic cache parameters: L1 data, L1 code, L2, L3.
CpuidResult cache(uint32_t index) noexcept {
    struct Cache {
        uint32_t type, level, ways, sets;
    };
    constexpr std::array caches{Cache{1, 1, 8, 64}, Cache{2, 1, 8, 64}, Cache{3, 2, 16, 1024}, Cache{3, 3, 16, 16384}};
    if (index >= caches.size()) return {};
    Cache const& c = caches[index];
    return {c.type | c.level << 5 | b(8), 63 | (c.ways - 1) << 22, c.sets - 1, 0};
}

CpuidResult topology(Cpu const& cpu, uint32_t level) noexcept {
    auto const id = static_cast<uint32_t>(cpu.index);
    if (level == 0) return {0, 1, 1 << 8, id};
    if (level == 1) return {0, 1, 2 << 8 | 1, id};
    return {0, 0, level, id};
}

CpuidResult basic(Cpu const& cpu, uint32_t leaf, uint32_t subleaf) noexcept {
    auto const mhz = static_cast<uint32_t>(cpu.tsc_hz / 1'000'000);
    switch (leaf) {
    case 0: return {k_basic_leaves, word("GenuineIntel", 0), word("GenuineIntel", 2), word("GenuineIntel", 1)};
    case 1:
        return {k_signature, static_cast<uint32_t>(cpu.index) << 24 | 1 << 16 | 8 << 8,
                (k_1_ecx_native & host().leaf1_ecx) | k_1_ecx_emulated, k_1_edx};
    case 2: return {0x00FF0001, 0, 0, 0}; // see leaf 4
    case 4: return cache(subleaf);
    case 6: return {b(2), 0, 0, 0}; // ARAT
    case 7:
        if (subleaf == 2)
            return {0, 0, 0, b(4)}; // BHI_CTRL: Linux asks for it, whatever BHI_NO says, or clears by loops
        if (subleaf != 0) return {};
        return {2, (k_7_ebx_native & host().leaf7_ebx) | k_7_ebx_emulated, k_7_ecx, k_7_edx};
    case 0xB: return topology(cpu, subleaf);
    // The core crystal is the TSC itself: a ratio of 1/1 loses nothing to rounding.
    case 0x15: return {1, 1, cpu.tsc_hz >> 32 ? 0 : static_cast<uint32_t>(cpu.tsc_hz), 0};
    case 0x16: return {mhz, mhz, 100, 0};
    default: return {};
    }
}

CpuidResult extended(uint32_t leaf) noexcept {
    static constexpr char brand[49] = "Coffer software CPU";
    switch (leaf) {
    case 0x80000000: return {k_extended_leaves, 0, 0, 0};
    case 0x80000001: return {0, 0, k_ext_1_ecx, k_ext_1_edx};
    case 0x80000002:
    case 0x80000003:
    case 0x80000004: {
        size_t const at = (leaf - 0x80000002) * 4;
        return {word(brand, at), word(brand, at + 1), word(brand, at + 2), word(brand, at + 3)};
    }
    case 0x80000006: return {0, 0, 1024 << 16 | 8 << 12 | 64, 0};
    case 0x80000007: return {0, 0, 0, b(8)}; // invariant TSC
    case 0x80000008: return {k_physical_address_bits | 48 << 8, 0, 0, 0};
    default: return {};
    }
}

constexpr char k_kvm_signature[13] = "KVMKVMKVM\0\0";

CpuidResult hypervisor(Cpu const& cpu, uint32_t leaf) noexcept {
    constexpr uint32_t apic_khz = 1'000'000;
    switch (leaf) {
    // KVM's paravirtual interface with no feature (Linux 6.1, Documentation/virt/kvm/x86/cpuid.rst), as the KVM backend
    // has it with some: a guest then knows that its CPU may stand still for a while, and Linux does not stop at a start
    // where a busy host made it miss timer ticks.
    case 0x40000000:
        return {k_hypervisor_leaves, word(k_kvm_signature, 0), word(k_kvm_signature, 1), word(k_kvm_signature, 2)};
    case 0x40000001: return {};
    // TSC and APIC timer frequency, as VMware defined the leaf and others took it over.
    case 0x40000010: return {static_cast<uint32_t>(cpu.tsc_hz / 1000), apic_khz, 0, 0};
    default: return {};
    }
}

} // namespace

CpuidResult cpuid(Cpu const& cpu, uint32_t leaf, uint32_t subleaf) noexcept {
    if (leaf >= 0x40000000 && leaf <= 0x400000FF) return hypervisor(cpu, leaf);
    if (leaf >= 0x80000000 && leaf <= k_extended_leaves) return extended(leaf);
    // Above the highest leaf Intel gives the data of the highest basic one.
    return basic(cpu, leaf <= k_basic_leaves ? leaf : k_basic_leaves, subleaf);
}

uint64_t guest_tsc(Cpu const& cpu) noexcept {
    return __rdtsc() + cpu.tsc_offset;
}

} // namespace coffer::vmm::soft
