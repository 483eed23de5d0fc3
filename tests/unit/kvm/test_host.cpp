// What does not need a guest: opening KVM, the CPUID policy, the measurement and the choice.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/unit/kvm/micro_guest.hpp"
#include "vmm/accel/choose.hpp"
#include "vmm/accel/kvm/cpuid.hpp"
#include "vmm/accel/kvm/msrs.hpp"
#include "vmm/accel/kvm/ring0_probe.hpp"

namespace coffer::tests {
namespace {

using namespace vmm;
using namespace vmm::kvm;

TEST(KvmHost, SaysWhyItCannotBeOpened) {
    auto absent = System::open("/nonexistent/kvm");
    ASSERT_FALSE(absent);
    EXPECT_EQ(absent.error().code(), ErrorCode::Unsupported);
    EXPECT_NE(absent.error().message().find("/nonexistent/kvm is absent"), std::string::npos);
    EXPECT_NE(absent.error().message().find("--accel soft"), std::string::npos);

    auto wrong = System::open("/dev/null");
    ASSERT_FALSE(wrong);
    EXPECT_EQ(wrong.error().code(), ErrorCode::Unsupported);
}

TEST(KvmHost, RefusesTooManyVcpusByName) {
    SKIP_WITHOUT_KVM();
    for (unsigned count : {0u, 100000u}) {
        auto partition = create_kvm_partition({.vcpus = count});
        ASSERT_FALSE(partition);
        EXPECT_EQ(partition.error().code(), ErrorCode::Unsupported);
        EXPECT_NE(partition.error().message().find("kvm"), std::string::npos);
    }
}

TEST(KvmHost, CapabilitiesHoldTogether) {
    SKIP_WITHOUT_KVM();
    auto partition = must(create_kvm_partition({}));
    auto const& capabilities = partition->capabilities();
    EXPECT_EQ(capabilities.name, "kvm");
    EXPECT_GE(capabilities.max_vcpus, 1u);
    EXPECT_LE(capabilities.max_vcpus, 254u);
    EXPECT_TRUE(capabilities.kernel_irqchip);
    EXPECT_NE(partition->irq_sink(), nullptr);
    EXPECT_NE(partition->msi_sink(), nullptr);
    EXPECT_EQ(partition->signals(0), nullptr);
    EXPECT_GE(partition->physical_address_bits(), 36u);
    EXPECT_LE(partition->physical_address_bits(), 52u);
}

TEST(KvmHost, EachVcpuIsTakenOnce) {
    SKIP_WITHOUT_KVM();
    RecordingIo io;
    auto partition = must(create_kvm_partition({.vcpus = 2}));
    EXPECT_FALSE(partition->create_vcpu(2, io, nullptr));
    auto vcpu = must(partition->create_vcpu(1, io, nullptr));
    EXPECT_FALSE(partition->create_vcpu(1, io, nullptr));
}

TEST(KvmHost, TheChoiceFollowsTheMeasurement) {
    EXPECT_EQ(choose_accelerator(AcceleratorPreference::Kvm).kind, AcceleratorKind::Kvm);
    EXPECT_EQ(choose_accelerator(AcceleratorPreference::Soft).kind, AcceleratorKind::Soft);
    auto choice = choose_accelerator(AcceleratorPreference::Auto);
    EXPECT_FALSE(choice.reason.empty());
    auto system = System::open();
    if (!system) {
        EXPECT_EQ(choice.kind, AcceleratorKind::Soft);
        EXPECT_NE(choice.reason.find(system.error().message()), std::string::npos);
        return;
    }
    auto measurement = must(measure_ring0(*system));
    EXPECT_GT(measurement.instructions_per_second, 1000);
    EXPECT_EQ(measurement.native, measurement.instructions_per_second >= 20e6);
    EXPECT_EQ(choice.kind == AcceleratorKind::Kvm, measurement.native) << choice.reason;
    EXPECT_NE(choice.reason.find("million instructions a second"), std::string::npos);
}

kvm_cpuid_entry2 leaf(uint32_t function, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx, int index = -1) {
    kvm_cpuid_entry2 entry{};
    entry.function = function;
    entry.eax = eax;
    entry.ebx = ebx;
    entry.ecx = ecx;
    entry.edx = edx;
    if (index >= 0) {
        entry.index = static_cast<uint32_t>(index);
        entry.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    }
    return entry;
}

constexpr uint32_t k_all = ~0u;

// A host that offers everything at once.
std::vector<kvm_cpuid_entry2> host(bool amd) {
    return {
        amd ? leaf(0, 0x20, 0x68747541, 0x444D4163, 0x69746E65) : leaf(0, 0x20, 0x756E6547, 0x6C65746E, 0x49656E69),
        leaf(1, 0xA0F11, 0xFF080800, k_all, k_all),
        leaf(4, 0xFC01C121, k_all, 63, 0, 0),    // level 1, shared by 8
        leaf(4, 0xFC01C163, k_all, 63, 0, 1),    // level 3
        leaf(5, 64, 64, 3, 0x11142120),
        leaf(6, k_all, 2, 9, 3),
        leaf(7, 2, k_all, k_all, k_all, 0),
        leaf(7, k_all, 0, 0, 0, 1),
        leaf(0xA, 0x08300805, 0, 0xF, 0x8604),
        leaf(0xB, 1, 2, 0x100, 77, 0),
        leaf(0xB, 6, 64, 0x201, 77, 1),
        leaf(0xD, 0x602E7, 0x2B00, 0x2B00, 0, 0),
        leaf(0xD, 0x2000, 0xB00, 0, 0, 18),
        leaf(0x12, 3, 0, 0, 0, 0),
        leaf(0x15, 2, 84, 25000000, 0),
        leaf(0x16, 3000, 4000, 100, 0),
        leaf(0x1F, 1, 2, 0x100, 77, 0),
        leaf(0x1F, 6, 64, 0x201, 77, 1),
        leaf(0x40000000, 0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D),
        leaf(0x40000001, k_all, 0, 0, 0),
        leaf(0x80000000, 0x80000026, 0, 0, 0),
        leaf(0x80000001, 0xA0F11, 0, k_all, k_all),
        leaf(0x80000007, 0, 0, 0, 0x100),
        leaf(0x80000008, 0x302D30, 0, 0x703F, 0),
        leaf(0x8000000A, 1, 8, 0, k_all),
        leaf(0x8000001D, 0x1C121, 0, 0, 0, 0),
        leaf(0x8000001D, 0x1C163, 0, 0, 0, 1),
        leaf(0x8000001E, 77, 0x105, 1, 0),
        leaf(0x8000001F, 0xF, 51, 509, 1),
    };
}

TEST(KvmCpuid, OffersNoVirtualizationPmuSgxOrAmx) {
    for (bool amd : {false, true}) {
        auto leaves = guest_cpuid(host(amd), {.vcpus = 1, .tsc_deadline = true, .tsc_khz = 3000000}, 0);
        EXPECT_EQ(find_leaf(leaves, 1)->ecx & (1u << 5 | 1u << 15 | 1u << 3), 0u);
        EXPECT_EQ(find_leaf(leaves, 0x80000001)->ecx & (1u << 2), 0u);
        for (uint32_t gone : {0x5u, 0xAu, 0x12u, 0x15u, 0x16u, 0x8000000Au, 0x8000001Fu}) {
            auto const* entry = find_leaf(leaves, gone);
            ASSERT_NE(entry, nullptr);
            EXPECT_EQ(entry->eax | entry->ebx | entry->ecx | entry->edx, 0u) << std::hex << gone;
        }
        auto const* features = find_leaf(leaves, 7);
        EXPECT_EQ(features->ebx & (1u << 2), 0u);
        EXPECT_EQ(features->edx & (1u << 15 | 1u << 22 | 1u << 24 | 1u << 25), 0u);
        EXPECT_EQ((features->edx >> 29) & 1, amd ? 0u : 1u);  // ARCH_CAPABILITIES
        EXPECT_EQ(find_leaf(leaves, 7, 1)->eax, k_all);
        EXPECT_EQ(find_leaf(leaves, 0xD)->eax, 0x2E7u);
        EXPECT_EQ(find_leaf(leaves, 0xD, 18)->eax, 0u);
    }
}

TEST(KvmCpuid, EmulatedRing0GetsWhatCanBeCompleted) {
    CpuidPolicy policy{.vcpus = 1, .tsc_deadline = true, .tsc_khz = 3000000, .native_ring0 = false};
    auto leaves = guest_cpuid(host(true), policy, 0);
    auto const* basic = find_leaf(leaves, 1);
    constexpr uint32_t k_v2 = 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;
    EXPECT_EQ(basic->ecx & k_v2, k_v2);
    for (unsigned gone : {12u, 17u, 26u, 27u, 28u, 29u}) EXPECT_EQ((basic->ecx >> gone) & 1, 0u) << gone;  // AVX, XSAVE...
    EXPECT_EQ(find_leaf(leaves, 7)->ebx & (1u << 3 | 1u << 5 | 1u << 8 | 1u << 16 | 1u << 20), 0u);
    EXPECT_EQ(find_leaf(leaves, 7, 1)->eax, 0u);
    EXPECT_EQ(find_leaf(leaves, 0xD)->eax, 0u);
    EXPECT_EQ(find_leaf(leaves, 0x80000001)->ecx & (1u << 5), 0u);  // LZCNT
    policy.vcpus = 2;
    EXPECT_EQ(find_leaf(guest_cpuid(host(true), policy, 0), 1)->ecx & (1u << 13), 0u);  // CX16
}

TEST(KvmCpuid, AddsWhatKvmLeavesOut) {
    auto supported = host(false);
    for (auto& entry : supported)
        if (entry.function == 1) entry.ecx = entry.edx = 0;
    auto leaves = guest_cpuid(supported, {.vcpus = 1, .tsc_deadline = true, .tsc_khz = 3000000}, 0);
    auto const* basic = find_leaf(leaves, 1);
    EXPECT_EQ(basic->ecx, 1u << 21 | 1u << 24 | 1u << 31);
    EXPECT_EQ(basic->edx, 1u << 7 | 1u << 12 | 1u << 14 | 1u << 16);
    EXPECT_EQ(find_leaf(leaves, 6)->eax, 4u);  // ARAT alone
    EXPECT_EQ(find_leaf(leaves, 6)->ecx, 0u);
    EXPECT_EQ(find_leaf(leaves, 0x40000000)->eax, 0x40000010u);
    EXPECT_EQ(find_leaf(leaves, 0x40000010)->eax, 3000000u);
    auto without = guest_cpuid(supported, {.vcpus = 1, .tsc_deadline = false, .tsc_khz = 3000000}, 0);
    EXPECT_EQ(find_leaf(without, 1)->ecx, 1u << 21 | 1u << 31);
}

TEST(KvmCpuid, DescribesTheGuestsTopology) {
    for (unsigned vcpus : {1u, 2u, 3u, 8u, 200u}) {
        unsigned bits = 0;
        while ((1u << bits) < vcpus) ++bits;
        for (unsigned index : {0u, vcpus - 1}) {
            auto leaves = guest_cpuid(host(true), {.vcpus = vcpus, .tsc_deadline = true, .tsc_khz = 1}, index);
            auto const* basic = find_leaf(leaves, 1);
            EXPECT_EQ(basic->ebx >> 24, index);
            EXPECT_EQ((basic->ebx >> 16) & 0xFF, std::min(1u << bits, 255u));
            EXPECT_EQ((basic->edx >> 28) & 1, vcpus > 1 ? 1u : 0u);
            for (uint32_t function : {0xBu, 0x1Fu}) {
                auto const* thread = find_leaf(leaves, function, 0);
                auto const* core = find_leaf(leaves, function, 1);
                auto const* end = find_leaf(leaves, function, 2);
                ASSERT_TRUE(thread && core && end);
                EXPECT_EQ(thread->eax, 0u);
                EXPECT_EQ(thread->ebx, 1u);
                EXPECT_EQ(thread->ecx, 0x100u);
                EXPECT_EQ(core->eax, bits);
                EXPECT_EQ(core->ebx, vcpus);
                EXPECT_EQ(core->ecx, 0x201u);
                EXPECT_EQ(core->edx, index);
                EXPECT_EQ(end->ebx, 0u);
            }
            EXPECT_EQ(find_leaf(leaves, 0x80000008)->ecx, bits << 12 | (vcpus - 1));
            EXPECT_EQ(find_leaf(leaves, 0x8000001E)->eax, index);
            EXPECT_EQ((find_leaf(leaves, 0x80000001)->ecx >> 22) & 1, 1u);  // TOPOEXT
            EXPECT_EQ((find_leaf(leaves, 0x8000001D, 0)->eax >> 14) & 0xFFF, 0u);
            EXPECT_EQ((find_leaf(leaves, 0x8000001D, 1)->eax >> 14) & 0xFFF, (1u << bits) - 1);
            EXPECT_EQ((find_leaf(leaves, 4, 0)->eax >> 14) & 0xFFF, 0u);
            EXPECT_EQ((find_leaf(leaves, 4, 1)->eax >> 14) & 0xFFF, (1u << bits) - 1);
        }
    }
}

TEST(KvmCpuid, KeepsTheGuestPhysicalAddressBits) {
    auto leaves = guest_cpuid(host(true), {.vcpus = 1}, 0);
    EXPECT_EQ(find_leaf(leaves, 0x80000008)->eax, 0x302D30u);
    EXPECT_EQ(physical_address_bits(leaves), 0x30u);
    EXPECT_EQ(physical_address_bits({}), 36u);
    EXPECT_EQ(physical_address_bits({leaf(0x80000008, 0xFF, 0, 0, 0)}), 36u);
}

TEST(KvmCpuid, HostsWithoutTopologyLeavesGetThem) {
    std::vector<kvm_cpuid_entry2> bare{leaf(0, 0x7, 0x756E6547, 0x6C65746E, 0x49656E69), leaf(1, 0x10, 0, 0, 0)};
    auto leaves = guest_cpuid(bare, {.vcpus = 4}, 3);
    EXPECT_EQ(find_leaf(leaves, 0)->eax, 0xDu);
    ASSERT_NE(find_leaf(leaves, 0xB, 1), nullptr);
    EXPECT_EQ(find_leaf(leaves, 0xB, 1)->ebx, 4u);
    EXPECT_EQ(find_leaf(leaves, 0x1F), nullptr);
    EXPECT_EQ(find_leaf(leaves, 0x40000010), nullptr);
}

TEST(KvmMsrs, AnswersByReason) {
    kvm_run run{};
    auto read = [&](uint32_t reason, uint32_t index) {
        run.exit_reason = KVM_EXIT_X86_RDMSR;
        run.msr.reason = reason;
        run.msr.index = index;
        run.msr.data = 0x5555;
        answer_msr_exit(run);
        return run.msr.error ? ~uint64_t{0} : uint64_t{run.msr.data};
    };
    auto write_refused = [&](uint32_t reason, uint32_t index) {
        run.exit_reason = KVM_EXIT_X86_WRMSR;
        run.msr.reason = reason;
        run.msr.index = index;
        run.msr.data = 1;
        answer_msr_exit(run);
        return run.msr.error != 0;
    };
    constexpr uint64_t k_refused = ~uint64_t{0};
    EXPECT_EQ(read(KVM_MSR_EXIT_REASON_UNKNOWN, 0x12345), 0u);
    EXPECT_FALSE(write_refused(KVM_MSR_EXIT_REASON_UNKNOWN, 0x12345));
    EXPECT_EQ(read(KVM_MSR_EXIT_REASON_INVAL, 0x10A), k_refused);
    EXPECT_TRUE(write_refused(KVM_MSR_EXIT_REASON_INVAL, 0xC0000080));
    EXPECT_EQ(read(KVM_MSR_EXIT_REASON_FILTER, msr::IA32_FEATURE_CONTROL), 1u);
    EXPECT_EQ(read(KVM_MSR_EXIT_REASON_FILTER, msr::VM_CR), 0x18u);
    EXPECT_EQ(read(KVM_MSR_EXIT_REASON_FILTER, 0x10), k_refused);
    EXPECT_TRUE(write_refused(KVM_MSR_EXIT_REASON_FILTER, msr::IA32_FEATURE_CONTROL));
}

}  // namespace
}  // namespace coffer::tests
