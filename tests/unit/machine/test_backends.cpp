// A machine that ran on one backend goes on on the other: CPU, interrupt controllers and PIT, and what it says is
// refused.
#include <algorithm>

#include "base/file.hpp"
#include "base/tagged.hpp"
#include "devices/chipset/local_apic_state.hpp"
#include "devices/chipset/pit_state.hpp"
#include "tests/unit/machine/tiny_machine.hpp"
#include "vmm/accel/partition_state.hpp"
#include "vmm/machine/controllers.hpp"

namespace coffer::vmm::tests {
namespace {

// Counts the PIT's interrupts, 100 a second, by the master 8259A at vectors 20h; halts in between. Loop and handler are
// in RAM at 500h, so that they are reached by segments of real mode.
ByteVector ticking_firmware() {
    constexpr std::array<uint8_t, 104> k_code{
        0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x70, 0xc7, 0x06, 0x80, 0x00, 0x00, 0x05, 0xc7, 0x06,
        0x82, 0x00, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x05, 0x66, 0x41, 0x88, 0xc8, 0x66, 0xc7, 0x06, 0x04, 0x05,
        0xba, 0xf8, 0x03, 0xee, 0x66, 0xc7, 0x06, 0x08, 0x05, 0xb0, 0x20, 0xe6, 0x20, 0xc6, 0x06, 0x0c, 0x05, 0xcf,
        0x66, 0xc7, 0x06, 0x10, 0x05, 0xf4, 0xeb, 0xfd, 0x00, 0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0,
        0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, 0xb0, 0xfe, 0xe6, 0x21, 0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x9c, 0xe6,
        0x40, 0xb0, 0x2e, 0xe6, 0x40, 0x66, 0x31, 0xc9, 0xfb, 0xea, 0x10, 0x05, 0x00, 0x00};
    constexpr std::array<uint8_t, 3> k_reset{0xE9, 0x0D, 0xFE}; // jmp FE00h
    ByteVector flash(size_t{64} << 10, std::byte{0xFF});
    std::memcpy(flash.data() + 0xFE00, k_code.data(), k_code.size());
    std::memcpy(flash.data() + 0xFFF0, k_reset.data(), k_reset.size());
    return flash;
}

using MakePartition = Result<std::unique_ptr<Partition>> (*)(PartitionConfig const&);

class BackendChange : public testing::Test {
protected:
    void SetUp() override {
        if (auto kvm = create_kvm_partition({}); !kvm) GTEST_SKIP() << kvm.error().message();
    }
    static constexpr uint64_t k_memory = uint64_t{16} << 20;

    static MachineState saved_by(TinyMachine& machine, size_t count) {
        auto decoded = decode_machine_state(encode_machine_state(machine.run_and_save(count)));
        EXPECT_TRUE(decoded);
        return decoded ? *decoded : MachineState{};
    }
    // Runs a while on each backend in turn, three times.
    static void take_turns(std::array<MakePartition, 3> const& makers, ByteVector const& firmware) {
        TinyMachine first(k_memory, nullptr, nullptr, firmware, makers[0]({}));
        auto state = saved_by(first, 20);
        auto bytes = first.serial.take();
        expect_counting(bytes, 1);
        auto* before = &first;
        std::vector<std::unique_ptr<TinyMachine>> others;
        for (size_t turn = 1; turn < makers.size(); ++turn) {
            others.push_back(std::make_unique<TinyMachine>(k_memory, &state, nullptr, firmware, makers[turn]({})));
            auto& next = *others.back();
            next.copy_ram(*before);
            // What this test is about is not which CPU the hosts' backends show.
            state.cpuid = read_guest_cpuid(next.machine->partition());
            state.physical_address_bits = static_cast<uint8_t>(next.machine->partition().physical_address_bits());
            auto restored = next.machine->restore_state(state);
            ASSERT_TRUE(restored) << restored.error().message();
            state = saved_by(next, 20);
            auto const more = next.serial.take();
            ASSERT_GE(more.size(), 20U);
            expect_counting(more, static_cast<uint8_t>(bytes.back() + 1));
            bytes = more;
            before = &next;
        }
    }
};

TEST_F(BackendChange, CountingGoesOn) {
    take_turns({create_soft_partition, create_kvm_partition, create_soft_partition}, counting_firmware());
    take_turns({create_kvm_partition, create_soft_partition, create_kvm_partition}, counting_firmware());
}

TEST_F(BackendChange, InterruptsGoOn) {
    take_turns({create_soft_partition, create_kvm_partition, create_soft_partition}, ticking_firmware());
    take_turns({create_kvm_partition, create_soft_partition, create_kvm_partition}, ticking_firmware());
}

// Both backends say the same of the same machine.
TEST_F(BackendChange, ControllersAreTheSameUnits) {
    std::array<MachineState, 2> states;
    std::array<MakePartition, 2> const makers{create_soft_partition, create_kvm_partition};
    for (size_t i = 0; i < 2; ++i) {
        TinyMachine machine(k_memory, nullptr, nullptr, ticking_firmware(), makers[i]({}));
        states[i] = saved_by(machine, 10);
    }
    auto unit = [&](size_t which, std::string_view name) -> ByteVector {
        auto found = std::ranges::find(states[which].units, name, &SavedUnit::name);
        EXPECT_NE(found, states[which].units.end()) << name;
        return found == states[which].units.end() ? ByteVector{} : found->state;
    };
    EXPECT_EQ(states[0].units.size(), states[1].units.size());
    for (size_t i = 0; i < 2; ++i) {
        SCOPED_TRACE(states[i].backend);
        devices::PicState pic;
        devices::PitState pit;
        devices::LocalApicState apic;
        devices::IoApicState ioapic;
        ASSERT_TRUE(decode_fields(unit(i, "pic"), pic));
        ASSERT_TRUE(decode_fields(unit(i, "pit"), pit));
        ASSERT_TRUE(decode_fields(unit(i, "lapic.0"), apic));
        ASSERT_TRUE(decode_fields(unit(i, "ioapic"), ioapic));
        EXPECT_EQ(pic.chips[0].vector_base, 0x20);
        EXPECT_EQ(pic.chips[0].imr, 0xFE);
        EXPECT_EQ(pic.chips[0].init_step, 0);
        EXPECT_EQ(pit.channels[0].mode, 2);
        EXPECT_EQ(pit.channels[0].count, 0x2E9CU);
        EXPECT_EQ(pit.channels[0].access, 3);
        EXPECT_TRUE(pit.channels[0].running);
        EXPECT_TRUE(pit.irq0_connected);
        EXPECT_EQ(apic.base, 0xFEE00900U);
        EXPECT_EQ(apic.lvt[3] & 0x1FF00U, 0x700U) << "LINT0: ExtINT, not masked";
        for (auto entry : ioapic.redirection) EXPECT_TRUE(entry & 0x10000U);
        EXPECT_TRUE(states[i].vcpus[0].local_apic.empty());
    }
}

// What one has and the other lacks is named before anything is changed.
TEST_F(BackendChange, FeatureThatTheOtherLacksIsNamed) {
    TinyMachine first(k_memory, nullptr, nullptr, counting_firmware(), create_kvm_partition({}));
    auto state = saved_by(first, 20);
    TinyMachine other(k_memory, &state);
    state.cpuid = read_guest_cpuid(other.machine->partition());
    for (auto& leaf : state.cpuid)
        if (leaf.leaf == 7 && leaf.subleaf == 0) leaf.registers[1] |= 1U << 16;
    auto restored = other.machine->restore_state(state);
    ASSERT_FALSE(restored);
    EXPECT_EQ(restored.error().code(), ErrorCode::Unsupported);
    for (auto const* part : {"avx512f", "'kvm'", "'soft'"})
        EXPECT_NE(restored.error().message().find(part), std::string::npos) << restored.error().message();
}

// What an earlier coffer saved of the software CPU's machine goes on on KVM, too.
TEST_F(BackendChange, GoldenStateRunsOnKvm) {
    auto bytes = read_file(std::filesystem::path(GOLDEN_FOLDER) / "tiny-v1.state", size_t{1} << 20);
    ASSERT_TRUE(bytes) << bytes.error().message();
    auto state = decode_machine_state(*bytes);
    ASSERT_TRUE(state) << state.error().message();
    TinyMachine machine(uint64_t{1} << 20, &*state, nullptr, {}, create_kvm_partition({}));
    // Saved on another host: this one's CPU and clock are taken for it.
    auto const& partition = machine.machine->partition();
    state->cpuid = read_guest_cpuid(partition);
    state->tsc_hz = partition.tsc_hz();
    state->wall_ns = wall_clock_ns();
    auto restored = machine.machine->restore_state(*state);
    ASSERT_TRUE(restored) << restored.error().message();
    machine.run(50);
    auto after = machine.serial.take();
    auto count = static_cast<uint8_t>(state->vcpus.at(0).gpr[1]);
    ASSERT_FALSE(after.empty());
    expect_counting(after, after[0] == count ? count : static_cast<uint8_t>(count + 1));
}

// Without /dev/kvm: the conversion alone.
class Controllers : public testing::Test {
protected:
    static MachineState kvm_machine(uint64_t base = 0xFEE00900) {
        MachineState state;
        state.vcpus.resize(1);
        auto& cpu = state.vcpus[0];
        cpu.local_apic.assign(1024, std::byte{0});
        cpu.msrs = {{0x1B, base}};
        PartitionState partition;
        partition.clock_ns = 77;
        partition.pic.chips[0].vector_base = 0x30;
        partition.ioapic.redirection[2] = 0x0100'0000'0000'8931;
        partition.pit.channels[0].count = 1000;
        state.partition = encode_fields(partition);
        return state;
    }
    static void set(MachineState& state, size_t at, uint32_t value) {
        store_le<uint32_t>(state.vcpus[0].local_apic, at, value);
    }
    static devices::LocalApicState apic_of(MachineState const& state) {
        devices::LocalApicState apic;
        auto unit = std::ranges::find(state.units, "lapic.0", &SavedUnit::name);
        EXPECT_TRUE(unit != state.units.end() && decode_fields(unit->state, apic));
        return apic;
    }
};

TEST_F(Controllers, ThereAndBack) {
    auto state = kvm_machine();
    set(state, 0x80, 0x20);        // TPR
    set(state, 0xD0, 0x0100'0000); // LDR
    set(state, 0xE0, 0xFFFF'FFFF); // DFR
    set(state, 0xF0, 0x1FF);       // SVR
    set(state, 0x120, 1U << 17);   // ISR: vector 0x51
    set(state, 0x1A0, 1U << 17);   // TMR
    set(state, 0x210, 1U << 5);    // IRR: vector 0x25
    set(state, 0x300, 0x000C'4030);
    set(state, 0x310, 0x0200'0000);
    set(state, 0x320, 0x200EC); // timer: periodic
    set(state, 0x350, 0x00700); // LINT0: ExtINT
    set(state, 0x360, 0x00400); // LINT1: NMI
    set(state, 0x370, 0x000FE);
    set(state, 0x380, 1'000'000); // initial count
    set(state, 0x390, 250'000);   // current
    set(state, 0x3E0, 0x3);       // by 16
    auto const page = state.vcpus[0].local_apic;
    ASSERT_TRUE(controllers_to_units(state));
    EXPECT_TRUE(state.vcpus[0].local_apic.empty());
    auto const apic = apic_of(state);
    EXPECT_EQ(apic.tpr, 0x20);
    EXPECT_EQ(apic.icr, 0x0200'0000'000C'4030ULL);
    EXPECT_EQ(apic.isr[2], 1U << 17);
    EXPECT_EQ(apic.irr[1], 1U << 5);
    EXPECT_EQ(apic.timer.initial_count, 1'000'000U);
    EXPECT_EQ(apic.timer.elapsed_ns, 750'000U * 16);
    EXPECT_FALSE(apic.timer.expired);

    auto vcpus = state.vcpus;
    auto partition = state.partition;
    ASSERT_TRUE(controllers_from_units(state.units, vcpus, partition, 0));
    PartitionState back;
    ASSERT_TRUE(decode_fields(partition, back));
    EXPECT_EQ(back.clock_ns, 77U);
    EXPECT_EQ(back.pic.chips[0].vector_base, 0x30);
    EXPECT_EQ(back.ioapic.redirection[2], 0x0100'0000'0000'8931ULL);
    for (size_t at = 0x80; at < 1024; at += 16)
        EXPECT_EQ(load_le<uint32_t>(vcpus[0].local_apic, at), load_le<uint32_t>(page, at)) << fmt::format("{:#x}", at);
    EXPECT_EQ(load_le<uint32_t>(vcpus[0].local_apic, 0x20), 0U);
    // Away for 100 ms, which is 6.25 periods of a million at 16 ns: a quarter of one more is done, of which there was
    // one left.
    vcpus = state.vcpus;
    ASSERT_TRUE(controllers_from_units(state.units, vcpus, partition, 100'000'000));
    EXPECT_EQ(load_le<uint32_t>(vcpus[0].local_apic, 0x390), 1'000'000U);
}

TEST_F(Controllers, OneShotThatFiredDoesNotFireAgain) {
    auto state = kvm_machine();
    set(state, 0x320, 0xEC); // one-shot
    set(state, 0x380, 5000);
    ASSERT_TRUE(controllers_to_units(state));
    EXPECT_TRUE(apic_of(state).timer.expired);
    auto partition = state.partition;
    ASSERT_TRUE(controllers_from_units(state.units, state.vcpus, partition, 0));
    EXPECT_EQ(load_le<uint32_t>(state.vcpus[0].local_apic, 0x380), 0U);
    EXPECT_EQ(load_le<uint32_t>(state.vcpus[0].local_apic, 0x390), 0U);
}

TEST_F(Controllers, X2ApicAndDeadline) {
    auto state = kvm_machine(0xFEE00D00);
    state.vcpus[0].msrs.push_back({0x6E0, 123'456'789});
    set(state, 0xD0, 1);        // LDR, which follows from the ID
    set(state, 0x320, 0x400EC); // TSC deadline
    ASSERT_TRUE(controllers_to_units(state));
    auto const apic = apic_of(state);
    EXPECT_EQ(apic.base, 0xFEE00D00U);
    EXPECT_EQ(apic.ldr, 0U);
    EXPECT_EQ(apic.timer.tsc_deadline, 123'456'789U);
    auto partition = state.partition;
    state.vcpus[0].msrs.clear();
    ASSERT_TRUE(controllers_from_units(state.units, state.vcpus, partition, 0));
    EXPECT_EQ(load_le<uint32_t>(state.vcpus[0].local_apic, 0xD0), 1U);
    auto msr = [&](uint32_t index) {
        auto found = std::ranges::find(state.vcpus[0].msrs, index, &MsrValue::index);
        return found == state.vcpus[0].msrs.end() ? 0 : found->value;
    };
    EXPECT_EQ(msr(0x1B), 0xFEE00D00U);
    EXPECT_EQ(msr(0x6E0), 123'456'789U);
}

// An interrupt whose delivery had begun is pending again, so that either backend delivers it.
TEST_F(Controllers, InterruptThatWasBeingTakenIsPendingAgain) {
    auto state = kvm_machine();
    set(state, 0x120, 1U << 17);
    state.vcpus[0].pending_event = {PendingEvent::Kind::Interrupt, 0x51, false, 0};
    ASSERT_TRUE(controllers_to_units(state));
    auto const apic = apic_of(state);
    EXPECT_EQ(apic.isr[2], 0U);
    EXPECT_EQ(apic.irr[2], 1U << 17);
    EXPECT_EQ(state.vcpus[0].pending_event.kind, PendingEvent::Kind::None);
    // Of the 8259A it stays what it is.
    auto external = kvm_machine();
    external.vcpus[0].pending_event = {PendingEvent::Kind::Interrupt, 0x20, false, 0};
    ASSERT_TRUE(controllers_to_units(external));
    EXPECT_EQ(external.vcpus[0].pending_event.kind, PendingEvent::Kind::Interrupt);
}

TEST_F(Controllers, MissingUnitIsRefused) {
    auto state = kvm_machine();
    ASSERT_TRUE(controllers_to_units(state));
    for (auto const* name : {"lapic.0", "pic", "ioapic", "pit"}) {
        auto units = state.units;
        std::erase_if(units, [&](auto const& unit) { return unit.name == name; });
        auto vcpus = state.vcpus;
        auto partition = state.partition;
        auto filled = controllers_from_units(units, vcpus, partition, 0);
        ASSERT_FALSE(filled);
        EXPECT_NE(filled.error().message().find(name), std::string::npos);
    }
}

} // namespace
} // namespace coffer::vmm::tests
