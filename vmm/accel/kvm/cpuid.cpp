// Sources: Intel SDM vol. 2A (order 325383) CPUID; AMD APM vol. 3 (24594) appendix E; Linux
// Documentation/virt/kvm/x86/cpuid.rst.
#include "vmm/accel/kvm/cpuid.hpp"

#include <algorithm>
#include <bit>

#include <asm/kvm_para.h>

namespace coffer::vmm::kvm {

namespace {

constexpr uint32_t bit(unsigned number) {
    return 1u << number;
}

constexpr uint32_t k_leaf1_ecx_monitor = bit(3);
constexpr uint32_t k_leaf1_ecx_vmx = bit(5);
constexpr uint32_t k_leaf1_ecx_pdcm = bit(15);
constexpr uint32_t k_leaf1_ecx_x2apic = bit(21);
constexpr uint32_t k_leaf1_ecx_tsc_deadline = bit(24);
constexpr uint32_t k_leaf1_ecx_hypervisor = bit(31);
constexpr uint32_t k_leaf1_edx_mce = bit(7);
constexpr uint32_t k_leaf1_edx_mtrr = bit(12);
constexpr uint32_t k_leaf1_edx_mca = bit(14);
constexpr uint32_t k_leaf1_edx_pat = bit(16);
constexpr uint32_t k_leaf1_edx_htt = bit(28);
constexpr uint32_t k_leaf6_eax_arat = bit(2);
constexpr uint32_t k_leaf7_ebx_sgx = bit(2);
constexpr uint32_t k_leaf7_ecx_sgx_lc = bit(30);
constexpr uint32_t k_leaf7_edx_hybrid = bit(15);
constexpr uint32_t k_leaf7_edx_amx = bit(22) | bit(24) | bit(25);
constexpr uint32_t k_leaf7_edx_arch_capabilities = bit(29);
constexpr uint32_t k_xcr0_amx = bit(17) | bit(18);
constexpr uint32_t k_ext1_ecx_cmp_legacy = bit(1);
constexpr uint32_t k_ext1_ecx_svm = bit(2);
constexpr uint32_t k_ext1_ecx_topoext = bit(22);
constexpr uint32_t k_ext1_ecx_perfctr = bit(23) | bit(24) | bit(28);
constexpr uint32_t k_ext7_edx_invariant_tsc = bit(8);

// What is offered where KVM emulates ring 0. Left out: VEX and EVEX, XSAVE, and what costs an exit for each use or that
// the emulator runs wrongly (LZCNT and TZCNT as BSR and BSF). Feature leaves that are not named here become empty.
constexpr uint32_t k_emulated_leaf1_ecx = bit(0) | bit(9) | bit(13) | bit(19) | bit(20) | bit(21) | bit(22) | bit(23) |
                                          bit(24) | bit(30) | bit(31); // SSE3 to SSE4.2, CX16, POPCNT, x2APIC, RDRAND
constexpr uint32_t k_emulated_leaf7_ebx = bit(0) | bit(1) | bit(7) | bit(9);     // FSGSBASE, TSC_ADJUST, SMEP, ERMS
constexpr uint32_t k_emulated_leaf7_ecx = bit(2);                                // UMIP
constexpr uint32_t k_emulated_leaf7_edx = bit(26) | bit(27) | bit(29) | bit(31); // IBRS, STIBP, ARCH_CAP, SSBD
constexpr uint32_t k_emulated_ext1_ecx = bit(0) | bit(1) | bit(4) | bit(22);     // LAHF, CMP_LEGACY, CR8, TOPOEXT
constexpr uint32_t k_emulated_ext1_edx_not = bit(30) | bit(31);                  // 3DNow
constexpr uint32_t k_leaf1_ecx_cx16 = bit(13);

constexpr uint32_t k_kvm_timing_leaf = 0x40000010;

// Bits of APIC id below the package's.
unsigned core_bits(unsigned vcpus) {
    return static_cast<unsigned>(std::bit_width(vcpus - 1));
}

class Builder {
public:
    Builder(std::vector<kvm_cpuid_entry2> leaves, CpuidPolicy const& policy, unsigned index)
        : m_leaves(std::move(leaves)), m_policy(policy), m_index(index), m_amd(is_amd(m_leaves)) {}

    std::vector<kvm_cpuid_entry2> build() && {
        for (auto& leaf : m_leaves) {
            narrow(leaf);
            if (!m_policy.native_ring0) narrow_to_emulated(leaf);
        }
        topology_leaves();
        timing_leaf();
        ensure(0x6).eax = k_leaf6_eax_arat;
        return std::move(m_leaves);
    }

private:
    static void clear(kvm_cpuid_entry2& leaf) { leaf.eax = leaf.ebx = leaf.ecx = leaf.edx = 0; }

    kvm_cpuid_entry2& ensure(uint32_t function, uint32_t subleaf = 0, uint32_t flags = 0) {
        for (auto& leaf : m_leaves)
            if (leaf.function == function && leaf.index == subleaf) return leaf;
        m_leaves.push_back({});
        auto& leaf = m_leaves.back();
        leaf.function = function;
        leaf.index = subleaf;
        leaf.flags = flags;
        return leaf;
    }

    void narrow(kvm_cpuid_entry2& leaf) {
        switch (leaf.function) {
        case 0x1: basic_features(leaf); break;
        case 0x4: cache_sharing(leaf, true); break;
        case 0x5:  // MONITOR/MWAIT is not offered
        case 0x6:  // thermal and power: filled in again with ARAT alone
        case 0xA:  // no PMU
        case 0x12: // no SGX
        case 0x14: // no processor trace
        case 0x15:
        case 0x16: // the host's clocks; see timing_leaf()
        case 0x1A: // hybrid core types: the guest's CPUs are all alike
        case 0x1D:
        case 0x1E:       // no AMX
        case 0x8000000A: // no SVM
        case 0x8000001F: // no memory encryption
        case 0x80000022: // no PMU
        case 0x80000026: // the host's topology; 0xB says it all
            clear(leaf);
            break;
        case 0x7:
            if (leaf.index != 0) break;
            leaf.ebx &= ~k_leaf7_ebx_sgx;
            leaf.ecx &= ~k_leaf7_ecx_sgx_lc;
            leaf.edx &= ~(k_leaf7_edx_hybrid | k_leaf7_edx_amx);
            // KVM fakes the MSR on AMD, where no real CPU has it; Windows stops at it.
            if (m_amd) leaf.edx &= ~k_leaf7_edx_arch_capabilities;
            break;
        case 0xD:
            // AMX state needs a permission of the host process and 8 KiB a vCPU more.
            if (leaf.index == 0)
                leaf.eax &= ~k_xcr0_amx;
            else if (leaf.index == 17 || leaf.index == 18)
                clear(leaf);
            break;
        case 0x40000001:
            // Wants 15-bit MSI destinations of the interrupt remapping kind, which 254 vCPUs do not need.
            leaf.eax &= ~bit(KVM_FEATURE_MSI_EXT_DEST_ID);
            break;
        case 0x80000001:
            leaf.ecx &= ~(k_ext1_ecx_svm | k_ext1_ecx_perfctr);
            if (m_amd) {
                leaf.ecx |= k_ext1_ecx_topoext;
                if (m_policy.vcpus > 1)
                    leaf.ecx |= k_ext1_ecx_cmp_legacy;
                else
                    leaf.ecx &= ~k_ext1_ecx_cmp_legacy;
            }
            break;
        case 0x80000008:
            if (m_amd) leaf.ecx = (core_bits(m_policy.vcpus) << 12) | (m_policy.vcpus - 1);
            break;
        case 0x8000001D: cache_sharing(leaf, false); break;
        case 0x8000001E:
            leaf.eax = m_index;
            leaf.ebx = m_index & 0xFF; // one thread a core
            leaf.ecx = 0;              // one node
            break;
        default: break;
        }
    }

    void narrow_to_emulated(kvm_cpuid_entry2& leaf) const {
        switch (leaf.function) {
        case 0x1:
            leaf.ecx &= k_emulated_leaf1_ecx;
            // A completed instruction is atomic only against its own vCPU.
            if (m_policy.vcpus > 1) leaf.ecx &= ~k_leaf1_ecx_cx16;
            break;
        case 0x7:
            if (leaf.index == 0) {
                leaf.ebx &= k_emulated_leaf7_ebx;
                leaf.ecx &= k_emulated_leaf7_ecx;
                leaf.edx &= k_emulated_leaf7_edx;
            } else
                clear(leaf);
            break;
        case 0xD: clear(leaf); break;
        case 0x80000001:
            leaf.ecx &= k_emulated_ext1_ecx;
            leaf.edx &= ~k_emulated_ext1_edx_not;
            break;
        default: break;
        }
    }

    void basic_features(kvm_cpuid_entry2& leaf) const {
        uint32_t addressable = 1u << core_bits(m_policy.vcpus);
        leaf.ebx = (leaf.ebx & 0xFFFF) | (std::min(addressable, 255u) << 16) | (m_index << 24);
        leaf.ecx &= ~(k_leaf1_ecx_monitor | k_leaf1_ecx_vmx | k_leaf1_ecx_pdcm | k_leaf1_ecx_tsc_deadline);
        leaf.ecx |= k_leaf1_ecx_hypervisor | k_leaf1_ecx_x2apic;
        if (m_policy.tsc_deadline) leaf.ecx |= k_leaf1_ecx_tsc_deadline;
        leaf.edx |= k_leaf1_edx_mtrr | k_leaf1_edx_pat | k_leaf1_edx_mce | k_leaf1_edx_mca;
        if (m_policy.vcpus > 1)
            leaf.edx |= k_leaf1_edx_htt;
        else
            leaf.edx &= ~k_leaf1_edx_htt;
    }

    // Levels 1 and 2 belong to one core, what is above to the whole package.
    void cache_sharing(kvm_cpuid_entry2& leaf, bool intel) const {
        if ((leaf.eax & 0x1F) == 0) return;
        uint32_t sharing = ((leaf.eax >> 5) & 7) >= 3 ? (1u << core_bits(m_policy.vcpus)) - 1 : 0;
        leaf.eax = (leaf.eax & 0x3FFF) | (sharing << 14);
        if (intel) leaf.eax |= std::min((1u << core_bits(m_policy.vcpus)) - 1, 63u) << 26;
    }

    // One thread a core, all cores in one package. KVM copies the host's levels, or leaves them out.
    void topology_leaves() {
        for (uint32_t function : {0xBu, 0x1Fu}) {
            bool present = find_leaf(m_leaves, function) != nullptr;
            std::erase_if(m_leaves, [=](auto const& leaf) { return leaf.function == function; });
            if (function == 0x1F && !present) continue;
            struct Level {
                uint32_t shift, processors, type;
            };
            constexpr uint32_t k_thread = 1, k_core = 2, k_end = 0;
            Level const levels[] = {
                {0, 1, k_thread}, {core_bits(m_policy.vcpus), m_policy.vcpus, k_core}, {0, 0, k_end}};
            for (uint32_t number = 0; number < std::size(levels); ++number) {
                auto& leaf = ensure(function, number, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
                leaf.eax = levels[number].shift;
                leaf.ebx = levels[number].processors;
                leaf.ecx = number | (levels[number].type << 8);
                leaf.edx = m_index;
            }
        }
        auto& first = ensure(0x0);
        first.eax = std::max(first.eax, 0xDu);
    }

    // TSC and APIC timer frequencies in kHz, as guests of several hypervisors look for them there. KVM's local APIC
    // timer counts at 1 GHz.
    void timing_leaf() {
        auto const* power = find_leaf(m_leaves, 0x80000007);
        bool invariant = power && (power->edx & k_ext7_edx_invariant_tsc);
        if (!invariant || m_policy.tsc_khz == 0 || !find_leaf(m_leaves, KVM_CPUID_SIGNATURE)) return;
        auto& timing = ensure(k_kvm_timing_leaf);
        timing.eax = m_policy.tsc_khz;
        timing.ebx = 1'000'000;
        auto& signature = ensure(KVM_CPUID_SIGNATURE);
        signature.eax = std::max(signature.eax, k_kvm_timing_leaf);
    }

    std::vector<kvm_cpuid_entry2> m_leaves;
    CpuidPolicy const& m_policy;
    unsigned m_index;
    bool m_amd;
};

} // namespace

std::vector<kvm_cpuid_entry2> guest_cpuid(std::vector<kvm_cpuid_entry2> const& supported, CpuidPolicy const& policy,
                                          unsigned index) {
    return Builder(supported, policy, index).build();
}

kvm_cpuid_entry2 const* find_leaf(std::vector<kvm_cpuid_entry2> const& leaves, uint32_t function, uint32_t subleaf) {
    for (auto const& leaf : leaves) {
        bool indexed = leaf.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        if (leaf.function == function && (!indexed || leaf.index == subleaf)) return &leaf;
    }
    return nullptr;
}

bool is_amd(std::vector<kvm_cpuid_entry2> const& leaves) {
    auto const* vendor = find_leaf(leaves, 0);
    if (!vendor) return false;
    constexpr uint32_t k_auth = 0x68747541, k_hygo = 0x6F677948; // first four letters, in EBX
    return vendor->ebx == k_auth || vendor->ebx == k_hygo;
}

unsigned physical_address_bits(std::vector<kvm_cpuid_entry2> const& leaves) {
    auto const* sizes = find_leaf(leaves, 0x80000008);
    unsigned bits = sizes ? sizes->eax & 0xFF : 0;
    return bits >= 32 && bits <= 52 ? bits : 36;
}

} // namespace coffer::vmm::kvm
