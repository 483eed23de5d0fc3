#include "vmm/accel/kvm/vm.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <x86intrin.h>

#include "base/tagged.hpp"
#include "devices/chipset/pic_spec.hpp"
#include "vmm/accel/kvm/controllers.hpp"
#include "vmm/accel/kvm/cpuid.hpp"
#include "vmm/accel/kvm/msrs.hpp"
#include "vmm/accel/kvm/ring0_probe.hpp"
#include "vmm/accel/kvm/vcpu.hpp"
#include "vmm/layout.hpp"

namespace coffer::vmm::kvm {

namespace {

// APIC ids of 8 bits; 255 is the broadcast.
constexpr unsigned k_max_vcpus = 254;
constexpr uint64_t k_max_mce_banks = 10;

int64_t monotonic_ns() noexcept {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

} // namespace

Result<std::unique_ptr<KvmPartition>> KvmPartition::create(PartitionConfig const& config) {
    auto system = TRY(System::open());
    TRY(install_kick_signal());
    auto vm = TRY(system.create_vm());
    std::unique_ptr<KvmPartition> self(new KvmPartition(std::move(system), std::move(vm), config));
    TRY(self->set_up());
    return self;
}

Result<void> KvmPartition::set_up() {
    m_capabilities.name = "kvm";
    m_capabilities.max_vcpus =
        std::clamp(static_cast<unsigned>(m_system.extension(KVM_CAP_MAX_VCPUS)), 1u, k_max_vcpus);
    m_capabilities.kernel_irqchip = true;
    m_capabilities.dirty_log = true;
    m_capabilities.native_ring0 = TRY(measure_ring0(m_system)).native;
    if (m_config.vcpus == 0 || m_config.vcpus > m_capabilities.max_vcpus)
        return make_error(ErrorCode::Unsupported, "{} vCPUs asked for: the kvm backend can do 1 to {} on this host",
                          m_config.vcpus, m_capabilities.max_vcpus);

    uint64_t identity_map = layout::k_kvm_identity_map.value();
    TRY(m_vm.call(COFFER_KVM(KVM_SET_IDENTITY_MAP_ADDR), &identity_map));
    TRY(m_vm.call(COFFER_KVM(KVM_SET_TSS_ADDR), static_cast<unsigned long>(layout::k_kvm_tss.value())));
    TRY(create_interrupt_controllers());
    TRY(enable_capabilities());
    return create_vcpus();
}

Result<void> KvmPartition::create_interrupt_controllers() {
    TRY(m_vm.call(COFFER_KVM(KVM_CREATE_IRQCHIP)));
    kvm_pit_config pit{};
    pit.flags = KVM_PIT_SPEAKER_DUMMY; // port 0x61 too
    TRY(m_vm.call(COFFER_KVM(KVM_CREATE_PIT2), &pit));
    // Re-injecting lost PIT ticks keeps AMD's AVIC off; guests keep time by other clocks.
    if (m_system.extension(KVM_CAP_REINJECT_CONTROL) > 0) {
        kvm_reinject_control reinject{};
        reinject.pit_reinject = 0;
        TRY(m_vm.call(COFFER_KVM(KVM_REINJECT_CONTROL), &reinject));
    }
    int routes = m_system.extension(KVM_CAP_IRQ_ROUTING);
    m_interrupts = std::make_unique<IrqRouting>(m_vm, static_cast<unsigned>(routes));
    TRY(m_interrupts->install());
    m_power_on = TRY(read_controllers());
    return {};
}

Result<void> KvmPartition::enable_capabilities() {
    bool manual_protect = false;
    if (m_system.extension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) {
        kvm_enable_cap enable{};
        enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
        enable.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
        TRY(m_vm.call(COFFER_KVM(KVM_ENABLE_CAP), &enable));
        manual_protect = true;
    }
    int slots = m_system.extension(KVM_CAP_NR_MEMSLOTS);
    m_memory = std::make_unique<MemorySlots>(m_vm, slots > 0 ? static_cast<unsigned>(slots) : 32, manual_protect);

    // Gives the bytes of an instruction that KVM's emulator refuses, at every CPL, instead of a #UD above CPL 0.
    if (m_system.extension(KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0) {
        kvm_enable_cap enable{};
        enable.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE;
        enable.args[0] = 1;
        TRY(m_vm.call(COFFER_KVM(KVM_ENABLE_CAP), &enable));
    }
    return {};
}

Result<void> KvmPartition::create_vcpus() {
    auto supported = TRY(m_system.supported_cpuid());
    m_physical_address_bits = kvm::physical_address_bits(supported);
    TRY(route_msrs_to_user_space(m_system, m_vm, is_amd(supported)));
    for (unsigned index = 0; index < m_config.vcpus; ++index) {
        int fd = TRY(m_vm.call(COFFER_KVM(KVM_CREATE_VCPU), static_cast<unsigned long>(index)));
        Handle vcpu(UniqueFd(fd), fmt::format("vCPU {}", index));
        if (index == 0) {
            int khz = vcpu.try_call(COFFER_KVM(KVM_GET_TSC_KHZ), 0UL);
            if (khz <= 0) return make_error(ErrorCode::Unsupported, "the host's KVM does not know its TSC frequency");
            m_tsc_khz = static_cast<uint32_t>(khz);
        }
        // Pins the frequency: a restore on another host compares it.
        if (m_system.extension(KVM_CAP_TSC_CONTROL) > 0)
            TRY(vcpu.call(COFFER_KVM(KVM_SET_TSC_KHZ), static_cast<unsigned long>(m_tsc_khz)));
        CpuidPolicy policy{.vcpus = m_config.vcpus,
                           .tsc_deadline = m_system.extension(KVM_CAP_TSC_DEADLINE_TIMER) > 0,
                           .tsc_khz = m_tsc_khz,
                           .native_ring0 = m_capabilities.native_ring0};
        auto leaves = kvm::guest_cpuid(supported, policy, index);
        TRY(set_up_vcpu(vcpu, leaves));
        if (index == 0) m_cpuid = std::move(leaves);
        m_vcpus.push_back(std::move(vcpu));
    }
    return {};
}

// The order is that of dependence: machine checks size their banks before CPUID freezes, MSRs are checked against
// CPUID.
Result<void> KvmPartition::set_up_vcpu(Handle const& vcpu, std::vector<kvm_cpuid_entry2> const& cpuid) {
    uint64_t mce = 0;
    if (int banks = m_system.extension(KVM_CAP_MCE);
        banks > 0 && m_system.handle().try_call(COFFER_KVM(KVM_X86_GET_MCE_CAP_SUPPORTED), &mce) >= 0) {
        mce = (mce & ~uint64_t{0xFF}) | std::min<uint64_t>(k_max_mce_banks, static_cast<uint64_t>(banks));
        TRY(vcpu.call(COFFER_KVM(KVM_X86_SETUP_MCE), &mce));
    }
    Table<kvm_cpuid2, kvm_cpuid_entry2> table(cpuid.size());
    table.header()->nent = static_cast<uint32_t>(cpuid.size());
    std::copy(cpuid.begin(), cpuid.end(), table.entries());
    TRY(vcpu.call(COFFER_KVM(KVM_SET_CPUID2), table.header()));
    return write_initial_msrs(m_system, vcpu, cpuid);
}

Result<std::unique_ptr<Vcpu>> KvmPartition::create_vcpu(unsigned index, GuestIo& io, devices::CpuInterrupts*) {
    if (index >= m_vcpus.size() || m_vcpus[index].fd() < 0)
        return make_error(ErrorCode::Internal, "vCPU {} does not exist, or was taken before", index);
    StateLayout layout;
    if (int size = m_vm.try_call(COFFER_KVM(KVM_CHECK_EXTENSION), static_cast<unsigned long>(KVM_CAP_XSAVE2)); size > 0)
        layout.xsave_size = static_cast<size_t>(size);
    layout.saved_msrs = TRY(saved_msrs(m_system, m_vcpus[index]));
    VcpuSurroundings surroundings{.memory = *m_memory,
                                  .io = io,
                                  .tsc_offset = m_tsc_offset,
                                  .completion = {.xsave_size = layout.xsave_size,
                                                 .vcpus = m_config.vcpus,
                                                 .physical_address_bits = m_physical_address_bits,
                                                 .native_ring0 = m_capabilities.native_ring0}};
    size_t run_area_size = TRY(m_system.run_area_size());
    auto vcpu = TRY(KvmVcpu::create(std::move(m_vcpus[index]), index, run_area_size, std::move(layout), surroundings));
    return std::unique_ptr<Vcpu>(std::move(vcpu));
}

Result<void> KvmPartition::set_hpet_legacy_routing(bool on) {
    kvm_pit_state2 pit{};
    TRY(m_vm.call(COFFER_KVM(KVM_GET_PIT2), &pit));
    if (on)
        pit.flags |= KVM_PIT_FLAGS_HPET_LEGACY;
    else
        pit.flags &= ~static_cast<uint32_t>(KVM_PIT_FLAGS_HPET_LEGACY);
    TRY(m_vm.call(COFFER_KVM(KVM_SET_PIT2), &pit));
    return {};
}

Result<KvmPartition::InterruptControllers> KvmPartition::read_controllers() const {
    InterruptControllers state{};
    for (uint32_t chip = 0; chip < state.chips.size(); ++chip) {
        state.chips[chip].chip_id = chip;
        TRY(m_vm.call(COFFER_KVM(KVM_GET_IRQCHIP), &state.chips[chip]));
    }
    TRY(m_vm.call(COFFER_KVM(KVM_GET_PIT2), &state.pit));
    return state;
}

Result<void> KvmPartition::write_controllers(InterruptControllers const& state) const {
    for (auto const& chip : state.chips) TRY(m_vm.call(COFFER_KVM(KVM_SET_IRQCHIP), &chip));
    TRY(m_vm.call(COFFER_KVM(KVM_SET_PIT2), &state.pit));
    return {};
}

Result<void> KvmPartition::reset() {
    return write_controllers(m_power_on);
}

Result<ByteVector> KvmPartition::save() {
    auto controllers = TRY(read_controllers());
    kvm_clock_data clock{};
    TRY(m_vm.call(COFFER_KVM(KVM_GET_CLOCK), &clock));
    PartitionState state;
    state.clock_ns = clock.clock;
    state.pic.chips[0] = from_kvm(controllers.chips[KVM_IRQCHIP_PIC_MASTER].chip.pic);
    state.pic.chips[1] = from_kvm(controllers.chips[KVM_IRQCHIP_PIC_SLAVE].chip.pic);
    state.ioapic = from_kvm(controllers.chips[KVM_IRQCHIP_IOAPIC].chip.ioapic);
    state.pit = from_kvm(controllers.pit, monotonic_ns());
    return encode_fields(state);
}

Result<void> KvmPartition::restore(Bytes bytes, int64_t step) {
    PartitionState state;
    TRY(decode_fields(bytes, state));
    InterruptControllers controllers = m_power_on;
    controllers.chips[KVM_IRQCHIP_PIC_MASTER].chip.pic = to_kvm(state.pic.chips[0], devices::pic::k_elcr_mask_master);
    controllers.chips[KVM_IRQCHIP_PIC_SLAVE].chip.pic = to_kvm(state.pic.chips[1], devices::pic::k_elcr_mask_slave);
    controllers.chips[KVM_IRQCHIP_IOAPIC].chip.ioapic =
        to_kvm(state.ioapic, m_power_on.chips[KVM_IRQCHIP_IOAPIC].chip.ioapic.base_address);
    controllers.pit = to_kvm(state.pit, monotonic_ns(), step);
    TRY(write_controllers(controllers));
    if (state.clock_ns == 0) return {};
    // Before any vCPU runs: a guest that sees its clock jump later may wait for minutes.
    kvm_clock_data clock{};
    clock.clock = state.clock_ns + static_cast<uint64_t>(step);
    TRY(m_vm.call(COFFER_KVM(KVM_SET_CLOCK), &clock));
    return {};
}

CpuidRegisters KvmPartition::guest_cpuid(uint32_t leaf, uint32_t subleaf) const noexcept {
    auto const* entry = find_leaf(m_cpuid, leaf, subleaf);
    return entry ? CpuidRegisters{entry->eax, entry->ebx, entry->ecx, entry->edx} : CpuidRegisters{};
}

uint64_t KvmPartition::guest_tsc() const noexcept {
    return __rdtsc() + static_cast<uint64_t>(m_tsc_offset);
}

} // namespace coffer::vmm::kvm

namespace coffer::vmm {

Result<std::unique_ptr<Partition>> create_kvm_partition(PartitionConfig const& config) {
    auto partition = TRY(kvm::KvmPartition::create(config));
    return std::unique_ptr<Partition>(std::move(partition));
}

} // namespace coffer::vmm
