// State transfer: every register there and back, and a guest that moves between partitions.
#include <gtest/gtest.h>

#include "base/clock.hpp"
#include "base/tagged.hpp"
#include "tests/unit/kvm/micro_guest.hpp"

namespace coffer::tests {
namespace {

CpuState distinctive(CpuState state) {
    state = long_mode(std::move(state));
    for (size_t i = 0; i < state.gpr.size(); ++i) state.gpr[i] = 0x0101010101010101 * (i + 1);
    state.rip = 0x1234;
    state.rflags = 0xED7;  // all status flags and DF, IF
    state.cr2 = 0xDEAD000;
    state.idtr = {0x5000, 0x1FF};
    state.segment(SegmentName::Fs).base = 0x7F0000001000;
    state.segment(SegmentName::Gs).base = 0xFFFF800000002000;
    state.ldtr = {0x40, 0x82, 0x27, 0x6000};
    state.tr = {0x48, 0x8B, 0x67, 0x6800};
    state.dr = {0x1111, 0x2222, 0x3333, 0x4444};
    state.dr7 = 0x455;
    for (size_t i = 0; i < 256; ++i) state.fxsave[160 + i] = static_cast<uint8_t>(i * 7 + 1);  // XMM0-15
    state.fxsave[24] = 0xA0;  // MXCSR 0x1FA0
    state.fxsave[25] = 0x1F;
    state.fxsave[0] = 0x7B;  // FCW 0x027B
    state.fxsave[1] = 0x02;
    return state;
}

void expect_equal(CpuState const& a, CpuState const& b) {
    EXPECT_EQ(a.gpr, b.gpr);
    EXPECT_EQ(a.rip, b.rip);
    EXPECT_EQ(a.rflags, b.rflags);
    for (size_t i = 0; i < a.segments.size(); ++i) {
        EXPECT_EQ(a.segments[i].selector, b.segments[i].selector) << i;
        EXPECT_EQ(a.segments[i].attributes, b.segments[i].attributes) << i;
        EXPECT_EQ(a.segments[i].limit, b.segments[i].limit) << i;
        EXPECT_EQ(a.segments[i].base, b.segments[i].base) << i;
    }
    EXPECT_EQ(a.ldtr.base, b.ldtr.base);
    EXPECT_EQ(a.tr.base, b.tr.base);
    EXPECT_EQ(a.tr.attributes, b.tr.attributes);
    EXPECT_EQ(a.gdtr.base, b.gdtr.base);
    EXPECT_EQ(a.gdtr.limit, b.gdtr.limit);
    EXPECT_EQ(a.idtr.base, b.idtr.base);
    EXPECT_EQ(a.idtr.limit, b.idtr.limit);
    EXPECT_EQ(a.cr0, b.cr0);
    EXPECT_EQ(a.cr2, b.cr2);
    EXPECT_EQ(a.cr3, b.cr3);
    EXPECT_EQ(a.cr4, b.cr4);
    EXPECT_EQ(a.cr8, b.cr8);
    EXPECT_EQ(a.efer, b.efer);
    EXPECT_EQ(a.xcr0, b.xcr0);
    EXPECT_EQ(a.dr, b.dr);
    EXPECT_EQ(a.dr7, b.dr7);
    EXPECT_TRUE(std::equal(a.fxsave.begin(), a.fxsave.begin() + 8, b.fxsave.begin()));  // but FIP and FDP
    EXPECT_TRUE(std::equal(a.fxsave.begin() + 24, a.fxsave.begin() + 28, b.fxsave.begin() + 24));
    EXPECT_TRUE(std::equal(a.fxsave.begin() + 160, a.fxsave.begin() + 416, b.fxsave.begin() + 160));
    EXPECT_EQ(a.local_apic, b.local_apic);
    EXPECT_EQ(a.activity, b.activity);
    EXPECT_EQ(a.interrupt_shadow, b.interrupt_shadow);
    EXPECT_EQ(a.nmi_blocked, b.nmi_blocked);
    EXPECT_EQ(a.pending_event.kind, b.pending_event.kind);
    EXPECT_EQ(a.pending_event.vector, b.pending_event.vector);
    EXPECT_EQ(a.pending_event.error_code, b.pending_event.error_code);
}

TEST(KvmState, RoundTripsThroughASnapshot) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    auto wanted = distinctive(must(guest.cpu().get_state()));
    must(guest.cpu().set_state(wanted));
    auto state = must(guest.cpu().get_state());
    expect_equal(state, wanted);
    CpuState decoded;
    must(decode_fields(encode_fields(state), decoded));
    MicroGuest other;
    must(other.cpu().set_state(decoded));
    expect_equal(must(other.cpu().get_state()), wanted);
}

TEST(KvmState, EventsInDeliveryAreKept) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    using Kind = vmm::PendingEvent::Kind;
    auto base = long_mode(must(guest.cpu().get_state()));
    for (vmm::PendingEvent event : {vmm::PendingEvent{Kind::Exception, 14, true, 0x7},
                                    vmm::PendingEvent{Kind::Interrupt, 0x41, false, 0}}) {
        auto wanted = base;
        wanted.pending_event = event;
        must(guest.cpu().set_state(wanted));
        expect_equal(must(guest.cpu().get_state()), wanted);
    }
    auto wanted = base;
    wanted.interrupt_shadow = true;
    wanted.nmi_blocked = true;
    wanted.rflags |= 0x200;
    must(guest.cpu().set_state(wanted));
    expect_equal(must(guest.cpu().get_state()), wanted);
    must(guest.cpu().set_state(base));  // and they go away again
    expect_equal(must(guest.cpu().get_state()), base);
}

TEST(KvmState, APendingExceptionIsDelivered) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    load(guest.ram, 0x3000 + 14 * 8, {0x00, 0x20, k_code32, 0x00, 0x00, 0x8E, 0x00, 0x00});
    load(guest.ram, 0x2000, {0x58, 0xE7, 0x80, 0x0F, 0x20, 0xD0, 0xE7, 0x80, 0xE6, 0xF4});  // pop eax; out; CR2; out
    auto state = protected_mode(must(guest.cpu().get_state()));
    state.idtr = {0x3000, 0xFF};
    state.cr2 = 0xABC000;
    state.pending_event = {vmm::PendingEvent::Kind::Exception, 14, true, 2};
    must(guest.cpu().set_state(state));
    guest.run_to_end();
    EXPECT_EQ(guest.io.writes(0x80), (std::vector<uint64_t>{2, 0xABC000}));
}

TEST(KvmState, MsrsAndMtrrsAreSaved) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    auto value_of = [](CpuState const& state, uint32_t index) -> std::optional<uint64_t> {
        for (auto const& value : state.msrs)
            if (value.index == index) return value.value;
        return std::nullopt;
    };
    auto state = must(guest.cpu().get_state());
    struct {
        uint32_t index;
        uint64_t value;
    } const written[] = {
        {0x174, 0x33},                 // IA32_SYSENTER_CS
        {0x277, 0x0007010600070106},   // IA32_PAT
        {0x2FF, 0x806},                // IA32_MTRR_DEF_TYPE
        {0x200, 0x80000006},           // IA32_MTRR_PHYSBASE0
        {0x250, 0x0606060606060606},   // IA32_MTRR_FIX64K_00000
        {0xC0000081, 0x23001000000000},  // IA32_STAR
        {0xC0000082, 0xFFFFFFFF81000000},  // IA32_LSTAR
        {0xC0000084, 0x47700},         // IA32_FMASK
        {0xC0000102, 0xFFFF888000000000},  // IA32_KERNEL_GS_BASE
    };
    for (auto const& msr : written) {
        EXPECT_FALSE(value_of(state, msr.index)) << std::hex << msr.index;  // at its power-on value
        state.msrs.push_back({msr.index, msr.value});
    }
    must(guest.cpu().set_state(state));
    auto again = must(guest.cpu().get_state());
    for (auto const& msr : written) EXPECT_EQ(value_of(again, msr.index), msr.value) << std::hex << msr.index;
    EXPECT_FALSE(value_of(again, 0xC0000080));  // EFER has a field of its own

    // What a state leaves out goes back to its power-on value, as at a reset.
    std::erase_if(again.msrs, [](auto const& value) { return value.index == 0xC0000082; });
    must(guest.cpu().set_state(again));
    auto without = must(guest.cpu().get_state());
    EXPECT_FALSE(value_of(without, 0xC0000082));
    EXPECT_EQ(value_of(without, 0xC0000081), 0x23001000000000u);
    must(guest.cpu().reset());
    auto fresh = must(guest.cpu().get_state());
    for (auto const& msr : written) EXPECT_FALSE(value_of(fresh, msr.index)) << std::hex << msr.index;
}

TEST(KvmState, RefusesDamagedState) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    auto good = must(guest.cpu().get_state());
    auto bad = good;
    bad.local_apic.resize(17);
    EXPECT_FALSE(guest.cpu().set_state(bad));
    bad = good;
    bad.xsave_extended.resize(10);
    EXPECT_FALSE(guest.cpu().set_state(bad));
    bad = good;
    bad.xsave_extended.assign(1 << 20, std::byte{1});
    EXPECT_FALSE(guest.cpu().set_state(bad));
    bad = good;
    bad.cr0 = 0x80000000;  // paging without protection
    EXPECT_FALSE(guest.cpu().set_state(bad));
    must(guest.cpu().set_state(good));
}

TEST(KvmState, AMachineMovesToAnotherPartition) {
    SKIP_WITHOUT_KVM();
    // Counts in EBX and in memory, and tells each step; stopped in the middle, it goes on elsewhere.
    Code const code = {
        0x43, 0xFE, 0x05, 0x00, 0x30, 0x00, 0x00,  // again: inc ebx; inc byte [0x3000]
        0x88, 0xD8, 0xE6, 0x80,                    // mov al, bl; out 0x80, al
        0x80, 0xFB, 0x06, 0x75, 0xF0,              // cmp bl, 6; jne again
        0xA0, 0x00, 0x30, 0x00, 0x00, 0xE6, 0xF4,  // mov al, [0x3000]; out 0xF4, al
    };
    MicroGuest first;
    first.enter(protected_mode, code);
    auto state = must(first.cpu().get_state());
    state.gpr[static_cast<size_t>(Gpr::Rbx)] = 0;
    must(first.cpu().set_state(state));
    first.io.on_access = [&](Access const& access) {
        if (access.value == 3) first.cpu().kick();
    };
    auto exit = first.run();
    ASSERT_TRUE(exit) << exit.error().message();
    EXPECT_EQ(first.io.writes(0x80), (std::vector<uint64_t>{1, 2, 3}));
    first.partition->irq_sink()->set_line(9, true);  // pending in the controllers

    MicroGuest second;
    must(second.partition->restore(must(first.partition->save())));
    std::copy_n(first.ram.data(), first.ram.size(), second.ram.data());
    must(second.cpu().set_state(must(first.cpu().get_state())));
    second.run_to_end();
    EXPECT_EQ(second.io.writes(0x80), (std::vector<uint64_t>{4, 5, 6}));
    EXPECT_EQ(second.io.writes(k_end_port), std::vector<uint64_t>{6});
}

TEST(KvmState, PartitionStateIsChecked) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    auto saved = must(guest.partition->save());
    must(guest.partition->restore(saved));
    for (size_t length : {size_t{0}, size_t{5}, saved.size() / 2, saved.size() - 1})
        EXPECT_FALSE(guest.partition->restore(Bytes(saved).first(length))) << length;
}

TEST(KvmState, InterruptControllersAreSavedAndReset) {
    SKIP_WITHOUT_KVM();
    // The guest masks all of the first PIC; a reset opens it again.
    MicroGuest guest;
    Code const code = {0xE4, 0x21, 0xE6, 0x80, 0xB0, 0xA5, 0xE6, 0x21, 0xE4, 0x21, 0xE6, 0x80, 0xE6, 0xF4};
    guest.enter(real_mode, code);  // in; out 0x80; mask 0xA5; in; out 0x80; end
    guest.run_to_end();
    auto saved = must(guest.partition->save());
    must(guest.partition->reset());
    must(guest.cpu().reset());
    guest.enter(real_mode, code);
    guest.run_to_end();
    must(guest.partition->reset());
    must(guest.partition->restore(saved));
    must(guest.cpu().reset());
    guest.enter(real_mode, code);
    guest.run_to_end();
    auto masks = guest.io.writes(0x80);
    ASSERT_EQ(masks.size(), 6u);
    EXPECT_EQ(masks[1], 0xA5u);
    EXPECT_EQ(masks[2], masks[0]);
    EXPECT_EQ(masks[4], 0xA5u);
}

TEST(KvmState, GuestTscAdvancesAtItsRate) {
    SKIP_WITHOUT_KVM();
    MicroGuest guest;
    EXPECT_GT(guest.partition->tsc_hz(), 100'000'000u);
    Nanoseconds start = monotonic_now();
    uint64_t before = guest.partition->guest_tsc();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    uint64_t ticks = guest.partition->guest_tsc() - before;
    double elapsed = static_cast<double>(monotonic_now() - start) / static_cast<double>(k_ns_per_s);
    double seconds = static_cast<double>(ticks) / static_cast<double>(guest.partition->tsc_hz());
    EXPECT_GT(seconds, 0.095);
    EXPECT_LT(seconds, elapsed * 1.05);
}

}  // namespace
}  // namespace coffer::tests
