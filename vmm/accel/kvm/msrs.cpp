// Sources: Intel SDM vol. 4 (order 335592) table 2-2; AMD APM vol. 2 (24593) appendix A; api.rst 4.18, 4.97, 5, 7.
#include "vmm/accel/kvm/msrs.hpp"

#include <algorithm>
#include <array>
#include <optional>

#include "base/log.hpp"
#include "vmm/accel/kvm/cpuid.hpp"

namespace coffer::vmm::kvm {

namespace {

constexpr size_t k_batch = 256; // KVM's MAX_IO_MSRS

struct MsrRange {
    uint32_t first, last;
};

constexpr std::array k_never_saved{
    MsrRange{msr::IA32_APIC_BASE, msr::IA32_APIC_BASE},                 // in SREGS; CpuState carries it
    MsrRange{msr::IA32_FEATURE_CONTROL, msr::IA32_FEATURE_CONTROL},     // answered here
    MsrRange{msr::IA32_BIOS_SIGN_ID, msr::IA32_BIOS_SIGN_ID},           // the host's microcode
    MsrRange{0x9E, 0x9E},                                               // SMBASE
    MsrRange{0xC1, 0xC8},                                               // PMU counters
    MsrRange{0xCE, 0xCF},                                               // platform info, core capabilities
    MsrRange{msr::IA32_ARCH_CAPABILITIES, msr::IA32_ARCH_CAPABILITIES}, // the host's
    MsrRange{0x186, 0x18D},                                             // PMU event selects
    MsrRange{0x309, 0x30C},
    MsrRange{0x345, 0x345},
    MsrRange{0x38D, 0x392},                   // PMU
    MsrRange{0x3F1, 0x3F2},                   // PEBS
    MsrRange{0x480, 0x493},                   // VMX capabilities
    MsrRange{0x4C1, 0x4C8},                   // PMU, full width
    MsrRange{0x560, 0x58F},                   // processor trace
    MsrRange{0x40000000, 0x400001FF},         // Hyper-V, not offered
    MsrRange{msr::IA32_EFER, msr::IA32_EFER}, // in SREGS
    MsrRange{0xC0000300, 0xC0000302},         // AMD PMU
    MsrRange{0xC0010000, 0xC0010007},
    MsrRange{0xC0010200, 0xC001020B}, // AMD PMU
    MsrRange{msr::VM_CR, 0xC0010117}, // SVM
};

constexpr std::array<uint32_t, 11> k_fixed_mtrrs{0x250, 0x258, 0x259, 0x268, 0x269, 0x26A,
                                                 0x26B, 0x26C, 0x26D, 0x26E, 0x26F};

// VMX and SVM are locked off, as firmware does it (SDM vol. 3, 24.7; APM vol. 2, 15.30.1).
constexpr uint64_t k_feature_control_locked = 1;
constexpr uint64_t k_vm_cr_lock_and_disable = 0x18;

std::optional<uint64_t> locked_msr(uint32_t index) {
    if (index == msr::IA32_FEATURE_CONTROL) return k_feature_control_locked;
    if (index == msr::VM_CR) return k_vm_cr_lock_and_disable;
    return std::nullopt;
}

} // namespace

Result<std::vector<MsrValue>> read_msrs(Handle const& from, std::span<uint32_t const> indices) {
    std::vector<MsrValue> values;
    while (!indices.empty()) {
        size_t count = std::min(indices.size(), k_batch);
        Table<kvm_msrs, kvm_msr_entry> table(count);
        table.header()->nmsrs = static_cast<uint32_t>(count);
        for (size_t i = 0; i < count; ++i) table.entries()[i].index = indices[i];
        // The answer is the number read before the first that failed (4.18).
        auto read = static_cast<size_t>(TRY(from.call(COFFER_KVM(KVM_GET_MSRS), table.header())));
        read = std::min(read, count);
        for (size_t i = 0; i < read; ++i) values.push_back({table.entries()[i].index, table.entries()[i].data});
        indices = indices.subspan(read < count ? read + 1 : count);
    }
    return values;
}

Result<void> write_msrs(Handle const& vcpu, std::span<MsrValue const> values) {
    while (!values.empty()) {
        size_t count = std::min(values.size(), k_batch);
        Table<kvm_msrs, kvm_msr_entry> table(count);
        table.header()->nmsrs = static_cast<uint32_t>(count);
        for (size_t i = 0; i < count; ++i) {
            table.entries()[i].index = values[i].index;
            table.entries()[i].data = values[i].value;
        }
        auto written = static_cast<size_t>(TRY(vcpu.call(COFFER_KVM(KVM_SET_MSRS), table.header())));
        if (written < count)
            return make_error(ErrorCode::Unsupported, "the host's KVM refuses the value {:#x} for MSR {:#x}",
                              values[written].value, values[written].index);
        values = values.subspan(count);
    }
    return {};
}

Result<void> write_initial_msrs(System const& system, Handle const& vcpu, std::vector<kvm_cpuid_entry2> const& cpuid) {
    std::vector<MsrValue> values{
        {msr::IA32_MISC_ENABLE, 1}, // fast strings
        {msr::IA32_PAT, 0x0007040600070406},
        {msr::IA32_MTRR_DEF_TYPE, 0}, // off: the firmware programs them
    };
    auto const* features = find_leaf(cpuid, 7);
    bool arch_capabilities = features && (features->edx & (1u << 29));
    auto offered = TRY(system.feature_msr_indices());
    for (uint32_t index : {msr::IA32_ARCH_CAPABILITIES, msr::IA32_BIOS_SIGN_ID, msr::DE_CFG}) {
        if (std::ranges::find(offered, index) == offered.end()) continue;
        if (index == msr::IA32_ARCH_CAPABILITIES && !arch_capabilities) continue;
        if (index == msr::DE_CFG && !is_amd(cpuid)) continue;
        auto host = TRY(read_msrs(system.handle(), std::span(&index, 1)));
        values.insert(values.end(), host.begin(), host.end());
    }
    return write_msrs(vcpu, values);
}

Result<std::vector<uint32_t>> saved_msrs(System const& system, Handle const& vcpu) {
    auto indices = TRY(system.msr_indices());
    std::erase_if(indices, [](uint32_t index) {
        return std::ranges::any_of(k_never_saved,
                                   [=](auto range) { return index >= range.first && index <= range.last; });
    });
    std::array<uint32_t, 1> cap_index{msr::IA32_MTRRCAP};
    auto cap = TRY(read_msrs(vcpu, cap_index));
    uint32_t variable = cap.empty() ? 0 : static_cast<uint32_t>(cap[0].value & 0xFF);
    for (uint32_t i = 0; i < 2 * variable; ++i) indices.push_back(msr::IA32_MTRR_PHYSBASE0 + i);
    indices.insert(indices.end(), k_fixed_mtrrs.begin(), k_fixed_mtrrs.end());
    indices.push_back(msr::IA32_MTRR_DEF_TYPE);
    // The deadline is compared with the TSC: it comes last.
    std::ranges::sort(indices, {}, [](uint32_t index) { return std::pair(index == msr::IA32_TSC_DEADLINE, index); });
    indices.erase(std::unique(indices.begin(), indices.end()), indices.end());

    std::vector<uint32_t> present;
    for (auto const& value : TRY(read_msrs(vcpu, indices))) present.push_back(value.index);
    return present;
}

Result<void> route_msrs_to_user_space(System const& system, Handle const& vm, bool amd) {
    if (system.extension(KVM_CAP_X86_USER_SPACE_MSR) <= 0) return {};
    bool can_filter = system.extension(KVM_CAP_X86_MSR_FILTER) > 0;
    kvm_enable_cap enable{};
    enable.cap = KVM_CAP_X86_USER_SPACE_MSR;
    enable.args[0] = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
    if (can_filter) enable.args[0] |= KVM_MSR_EXIT_REASON_FILTER;
    TRY(vm.call(COFFER_KVM(KVM_ENABLE_CAP), &enable));
    if (!can_filter) return {};

    uint8_t denied = 0; // a bitmap of one MSR: 0 sends it here
    kvm_msr_filter filter{};
    filter.flags = KVM_MSR_FILTER_DEFAULT_ALLOW;
    filter.ranges[0].flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
    filter.ranges[0].nmsrs = 1;
    filter.ranges[0].base = amd ? msr::VM_CR : msr::IA32_FEATURE_CONTROL;
    filter.ranges[0].bitmap = &denied;
    TRY(vm.call(COFFER_KVM(KVM_X86_SET_MSR_FILTER), &filter));
    return {};
}

void answer_msr_exit(kvm_run& run) noexcept {
    bool write = run.exit_reason == KVM_EXIT_X86_WRMSR;
    auto& access = run.msr;
    access.error = 0;
    if (access.reason == KVM_MSR_EXIT_REASON_FILTER) {
        auto value = locked_msr(access.index);
        if (write || !value)
            access.error = 1;
        else
            access.data = *value;
        return;
    }
    bool known = access.reason == KVM_MSR_EXIT_REASON_INVAL;
    static log::RateLimit limit;
    if (limit.allow()) {
        if (write)
            log::debug("guest writes {:#x} to {} MSR {:#x}", access.data, known ? "the" : "the unknown", access.index);
        else
            log::debug("guest reads {} MSR {:#x}", known ? "the unavailable" : "the unknown", access.index);
    }
    if (known)
        access.error = 1;
    else if (!write)
        access.data = 0;
}

} // namespace coffer::vmm::kvm
