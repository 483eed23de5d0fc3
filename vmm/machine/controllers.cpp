// Sources: Intel SDM vol. 3 (order 325384-081), table 11-1 (the register page), 11.5.4 (timer), 11.8.4 (IRR and ISR).
#include "vmm/machine/controllers.hpp"

#include <algorithm>
#include <optional>

#include "base/tagged.hpp"
#include "devices/chipset/local_apic_state.hpp"
#include "vmm/accel/partition_state.hpp"

namespace coffer::vmm {

namespace lapic = devices::lapic;
using devices::LocalApicState;

namespace {

constexpr size_t k_register_page = 1024; // that part of a local APIC's page in which registers are
constexpr uint32_t k_apic_base_msr = 0x1B;
constexpr uint32_t k_tsc_deadline_msr = 0x6E0;

enum TimerMode : uint32_t { OneShot, Periodic, TscDeadline };

uint32_t timer_mode(uint32_t lvt) noexcept {
    return (lvt & lapic::k_lvt_timer_mode) >> lapic::k_lvt_timer_shift;
}

std::optional<uint64_t> msr_of(CpuState const& cpu, uint32_t index) noexcept {
    auto found = std::ranges::find(cpu.msrs, index, &MsrValue::index);
    if (found == cpu.msrs.end()) return std::nullopt;
    return found->value;
}
void set_msr(CpuState& cpu, uint32_t index, uint64_t value) {
    std::erase_if(cpu.msrs, [=](auto const& msr) { return msr.index == index; });
    cpu.msrs.push_back({index, value});
}

std::string apic_unit(size_t index) {
    return fmt::format("lapic.{}", index);
}

void read_vectors(Bytes page, uint16_t at, std::array<uint32_t, 8>& words) {
    for (size_t i = 0; i < words.size(); ++i) words[i] = load_le<uint32_t>(page, at + i * 16);
    words[0] &= ~0xFFFFU; // vectors that cannot be
}
void write_vectors(MutBytes page, uint16_t at, std::array<uint32_t, 8> const& words) {
    for (size_t i = 0; i < words.size(); ++i) store_le<uint32_t>(page, at + i * 16, words[i]);
}

LocalApicState from_page(Bytes page, uint64_t base, uint64_t deadline) {
    auto reg = [&](uint16_t at) { return load_le<uint32_t>(page, at); };
    LocalApicState state;
    bool const x2apic = base & lapic::k_base_x2apic;
    state.base = base;
    state.tpr = static_cast<uint8_t>(reg(lapic::TPR));
    // In x2APIC mode both follow from the ID.
    state.ldr = x2apic ? 0 : reg(lapic::LDR) & 0xFF00'0000;
    state.dfr = x2apic ? lapic::k_dfr_flat : reg(lapic::DFR) | ~lapic::k_dfr_writable;
    state.svr = reg(lapic::SVR) & lapic::k_svr_writable;
    state.esr = reg(lapic::ESR) & lapic::k_error_all;
    state.icr = (reg(lapic::ICR_LOW) & lapic::k_icr_writable) | uint64_t{reg(lapic::ICR_HIGH)} << 32;
    state.divide = static_cast<uint8_t>(reg(lapic::DIVIDE_CONFIG) & lapic::k_divide_writable);
    read_vectors(page, lapic::ISR, state.isr);
    read_vectors(page, lapic::TMR, state.tmr);
    read_vectors(page, lapic::IRR, state.irr);
    for (unsigned i = 0; i < lapic::k_lvt_count; ++i)
        state.lvt[i] = reg(static_cast<uint16_t>(lapic::LVT_TIMER + 16 * i)) & lapic::k_lvt_writable[i];
    auto& timer = state.timer;
    auto const mode = timer_mode(state.lvt[lapic::lvt_index(lapic::LVT_TIMER)]);
    if (mode == TscDeadline) {
        timer.tsc_deadline = deadline;
    } else {
        timer.initial_count = reg(lapic::INITIAL_COUNT);
        uint64_t const left = std::min(reg(lapic::CURRENT_COUNT), timer.initial_count);
        timer.elapsed_ns = (timer.initial_count - left) << lapic::divider_shift(state.divide);
        timer.expired = mode == OneShot && timer.initial_count != 0 && left == 0;
    }
    return state;
}

void to_page(LocalApicState const& state, size_t index, int64_t step, MutBytes page) {
    auto set = [&](uint16_t at, uint32_t value) { store_le<uint32_t>(page, at, value); };
    auto const id = static_cast<uint32_t>(index);
    bool const x2apic = state.base & lapic::k_base_x2apic;
    // KVM takes the ID in xAPIC form in either mode (api.rst 4.57, without KVM_X2APIC_API_USE_32BIT_IDS).
    set(lapic::ID, id << 24);
    set(lapic::VERSION, lapic::k_version);
    set(lapic::TPR, state.tpr);
    set(lapic::LDR, x2apic ? (id >> 4) << 16 | 1U << (id & 15) : state.ldr);
    set(lapic::DFR, state.dfr);
    set(lapic::SVR, state.svr);
    set(lapic::ESR, state.esr);
    set(lapic::ICR_LOW, static_cast<uint32_t>(state.icr));
    set(lapic::ICR_HIGH, static_cast<uint32_t>(state.icr >> 32));
    set(lapic::DIVIDE_CONFIG, state.divide);
    write_vectors(page, lapic::ISR, state.isr);
    write_vectors(page, lapic::TMR, state.tmr);
    write_vectors(page, lapic::IRR, state.irr);
    for (unsigned i = 0; i < lapic::k_lvt_count; ++i)
        set(static_cast<uint16_t>(lapic::LVT_TIMER + 16 * i), state.lvt[i]);
    auto const& timer = state.timer;
    auto const mode = timer_mode(state.lvt[lapic::lvt_index(lapic::LVT_TIMER)]);
    // A one-shot that fired would fire again with its count in place.
    if (mode == TscDeadline || timer.expired || timer.initial_count == 0) return;
    uint64_t const shift = lapic::divider_shift(state.divide);
    uint64_t const done = (timer.elapsed_ns + static_cast<uint64_t>(step)) >> shift;
    uint64_t const count = timer.initial_count;
    uint64_t const left = mode == Periodic ? count - done % count : done >= count ? 1 : count - done;
    set(lapic::INITIAL_COUNT, timer.initial_count);
    set(lapic::CURRENT_COUNT, static_cast<uint32_t>(left));
}

// Until its first instruction runs, an interrupt's delivery can be taken back.
void take_back(PendingEvent& event, LocalApicState& apic) {
    if (event.kind != PendingEvent::Kind::Interrupt) return;
    uint32_t const bit = 1U << (event.vector % 32);
    auto& in_service = apic.isr[event.vector / 32];
    if (!(in_service & bit)) return; // the 8259A's
    in_service &= ~bit;
    apic.irr[event.vector / 32] |= bit;
    event = {};
}

template <class T>
Result<T> unit_state(std::vector<SavedUnit> const& units, std::string_view name) {
    auto found = std::ranges::find(units, name, &SavedUnit::name);
    if (found == units.end()) return make_error(ErrorCode::Unsupported, "the saved machine lacks the unit '{}'", name);
    T state;
    if (auto decoded = decode_fields(found->state, state); !decoded)
        return std::move(decoded).error().with_context(fmt::format("saved unit '{}'", name));
    return state;
}

} // namespace

bool is_controller_unit(std::string_view name) noexcept {
    return name == "pic" || name == "ioapic" || name == "pit" || name.starts_with("lapic.");
}

Result<void> controllers_to_units(MachineState& state) {
    PartitionState partition;
    TRY(decode_fields(state.partition, partition));
    for (size_t index = 0; index < state.vcpus.size(); ++index) {
        auto& cpu = state.vcpus[index];
        if (cpu.local_apic.size() != k_register_page)
            return make_error(ErrorCode::Internal, "a local APIC of {} bytes", cpu.local_apic.size());
        // Not among the MSRs where it is as at power-on.
        uint64_t const power_on = lapic::k_base_address | lapic::k_base_enabled | (index == 0 ? lapic::k_base_bsp : 0);
        auto const base = msr_of(cpu, k_apic_base_msr).value_or(power_on);
        auto apic = from_page(cpu.local_apic, base, msr_of(cpu, k_tsc_deadline_msr).value_or(0));
        take_back(cpu.pending_event, apic);
        cpu.local_apic.clear();
        state.units.push_back({apic_unit(index), encode_fields(apic)});
    }
    state.units.push_back({"pic", encode_fields(partition.pic)});
    state.units.push_back({"ioapic", encode_fields(partition.ioapic)});
    state.units.push_back({"pit", encode_fields(partition.pit)});
    PartitionState rest;
    rest.clock_ns = partition.clock_ns;
    state.partition = encode_fields(rest);
    return {};
}

Result<void> controllers_from_units(std::vector<SavedUnit> const& units, std::vector<CpuState>& vcpus,
                                    ByteVector& partition, int64_t step) {
    PartitionState controllers;
    if (!partition.empty()) TRY(decode_fields(partition, controllers));
    controllers.pic = TRY(unit_state<devices::PicState>(units, "pic"));
    controllers.ioapic = TRY(unit_state<devices::IoApicState>(units, "ioapic"));
    controllers.pit = TRY(unit_state<devices::PitState>(units, "pit"));
    partition = encode_fields(controllers);
    for (size_t index = 0; index < vcpus.size(); ++index) {
        auto const apic = TRY(unit_state<LocalApicState>(units, apic_unit(index)));
        auto& cpu = vcpus[index];
        cpu.local_apic.assign(k_register_page, std::byte{0});
        to_page(apic, index, step, cpu.local_apic);
        set_msr(cpu, k_apic_base_msr, apic.base);
        set_msr(cpu, k_tsc_deadline_msr, apic.timer.tsc_deadline);
    }
    return {};
}

} // namespace coffer::vmm
