#include "vmm/accel/kvm/controllers.hpp"

#include <algorithm>

namespace coffer::vmm::kvm {

using devices::IoApicState;
using devices::PicChipState;
using devices::PitChannelState;
using devices::PitState;

namespace {

// How far a counter's byte is read or written, as KVM numbers it.
constexpr uint8_t k_none = 0;
constexpr uint8_t k_low = 1;
constexpr uint8_t k_word0 = 3; // the low byte is next
constexpr uint8_t k_word1 = 4; // the high byte is next

constexpr uint32_t k_speaker_on = 1U << 1; // KVM_PIT_FLAGS_SPEAKER_DATA_ON, newer than some headers
constexpr uint64_t k_ns_in_second = 1'000'000'000;

uint64_t scale(uint64_t value, uint64_t by, uint64_t over) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>(Wide{value} * by / over);
}
uint64_t ticks_of(uint64_t ns) {
    return scale(ns, devices::pit::k_hz, k_ns_in_second);
}

PitChannelState from_kvm(kvm_pit_channel_state const& channel, int64_t now) {
    PitChannelState state;
    // After reset KVM's counters have a mode that there is not, and no count that was written.
    state.loaded = channel.mode <= static_cast<uint8_t>(devices::pit::Mode::HardwareStrobe);
    state.mode = state.loaded ? channel.mode : uint8_t{0};
    bool const known = channel.rw_mode >= k_low && channel.rw_mode <= k_word0;
    state.access = known ? channel.rw_mode : static_cast<uint8_t>(devices::pit::Access::LowHigh);
    state.bcd = channel.bcd != 0;
    state.gate = channel.gate != 0;
    state.count = state.loaded ? std::clamp<uint32_t>(channel.count, 1, state.bcd ? 10'000 : 0x1'0000) : 0;
    state.running = state.loaded && state.gate;
    if (state.running)
        state.elapsed = ticks_of(static_cast<uint64_t>(std::max<int64_t>(0, now - channel.count_load_time)));
    state.low_written = channel.write_state == k_word1;
    state.low_byte = channel.write_latch;
    state.latched_bytes = channel.count_latched == k_none    ? uint8_t{0}
                          : channel.count_latched == k_word0 ? uint8_t{2}
                                                             : uint8_t{1};
    state.high_next = (channel.count_latched != k_none ? channel.count_latched : channel.read_state) == k_word1;
    state.latched_count = channel.latched_count;
    state.status_latched = channel.status_latched != 0;
    state.latched_status = channel.status;
    return state;
}

kvm_pit_channel_state to_kvm(PitChannelState const& state, int64_t now, int64_t step) {
    kvm_pit_channel_state channel{};
    bool const both = state.access == static_cast<uint8_t>(devices::pit::Access::LowHigh);
    channel.mode = state.loaded ? state.mode : uint8_t{0xFF};
    channel.rw_mode = state.access;
    channel.bcd = state.bcd;
    channel.gate = state.gate;
    channel.count = state.loaded ? state.count : 0x1'0000;
    constexpr uint64_t k_long_ago = uint64_t{1} << 50; // ticks
    auto const elapsed = scale(std::min(state.elapsed, k_long_ago), k_ns_in_second, devices::pit::k_hz);
    channel.count_load_time = now - static_cast<int64_t>(elapsed) - step;
    channel.write_state = both ? (state.low_written ? k_word1 : k_word0) : state.access;
    channel.write_latch = state.low_byte;
    channel.read_state = both ? (state.high_next ? k_word1 : k_word0) : state.access;
    if (state.latched_bytes != 0)
        channel.count_latched = !both ? state.access : state.latched_bytes == 2 ? k_word0 : k_word1;
    channel.latched_count = state.latched_count;
    channel.status_latched = state.status_latched;
    channel.status = state.latched_status;
    return channel;
}

} // namespace

PicChipState from_kvm(kvm_pic_state const& chip) {
    PicChipState state;
    state.irr = chip.irr;
    state.isr = chip.isr;
    state.imr = chip.imr;
    state.lines = chip.last_irr;
    state.elcr = chip.elcr;
    state.vector_base = chip.irq_base;
    state.top_priority = chip.priority_add & 7;
    state.init_step = chip.init_state & 3;
    state.expect_icw4 = chip.init4 != 0;
    state.read_isr = chip.read_reg_select != 0;
    state.poll = chip.poll != 0;
    state.special_mask = chip.special_mask != 0;
    state.auto_eoi = chip.auto_eoi != 0;
    state.rotate_on_auto_eoi = chip.rotate_on_auto_eoi != 0;
    state.special_fully_nested = chip.special_fully_nested_mode != 0;
    return state;
}

kvm_pic_state to_kvm(PicChipState const& state, uint8_t elcr_mask) {
    kvm_pic_state chip{};
    chip.irr = state.irr;
    chip.isr = state.isr;
    chip.imr = state.imr;
    chip.last_irr = state.lines;
    chip.elcr = state.elcr;
    chip.elcr_mask = elcr_mask;
    chip.irq_base = state.vector_base;
    chip.priority_add = state.top_priority;
    chip.init_state = state.init_step;
    chip.init4 = state.expect_icw4;
    chip.read_reg_select = state.read_isr;
    chip.poll = state.poll;
    chip.special_mask = state.special_mask;
    chip.auto_eoi = state.auto_eoi;
    chip.rotate_on_auto_eoi = state.rotate_on_auto_eoi;
    chip.special_fully_nested_mode = state.special_fully_nested;
    return chip;
}

IoApicState from_kvm(kvm_ioapic_state const& ioapic) {
    namespace spec = devices::ioapic;
    IoApicState state;
    state.select = static_cast<uint8_t>(ioapic.ioregsel);
    state.id = (ioapic.id << 24) & spec::k_id_mask;
    for (unsigned pin = 0; pin < spec::k_pins; ++pin) {
        uint64_t entry = ioapic.redirtbl[pin].bits & (spec::k_writable | spec::k_remote_irr);
        if (!(entry & spec::k_level)) entry &= ~spec::k_remote_irr;
        state.redirection[pin] = entry;
        if ((entry & spec::k_level) && (ioapic.irr >> pin & 1)) state.lines |= 1U << pin;
    }
    return state;
}

kvm_ioapic_state to_kvm(IoApicState const& state, uint64_t base_address) {
    namespace spec = devices::ioapic;
    kvm_ioapic_state ioapic{};
    ioapic.base_address = base_address;
    ioapic.ioregsel = state.select;
    ioapic.id = state.id >> 24;
    for (unsigned pin = 0; pin < spec::k_pins; ++pin) {
        ioapic.redirtbl[pin].bits = state.redirection[pin];
        if (state.redirection[pin] & spec::k_level) ioapic.irr |= state.lines & (1U << pin);
    }
    return ioapic;
}

PitState from_kvm(kvm_pit_state2 const& pit, int64_t now) {
    PitState state;
    for (unsigned i = 0; i < devices::pit::k_channels; ++i) state.channels[i] = from_kvm(pit.channels[i], now);
    // Only the speaker's gate can be closed.
    state.channels[0].gate = state.channels[1].gate = true;
    if (state.channels[devices::pit::k_speaker_channel].gate) state.system_control |= devices::pit::k_sc_gate2;
    if (pit.flags & k_speaker_on) state.system_control |= devices::pit::k_sc_speaker;
    state.irq0_connected = !(pit.flags & KVM_PIT_FLAGS_HPET_LEGACY);
    return state;
}

kvm_pit_state2 to_kvm(PitState const& state, int64_t now, int64_t step) {
    kvm_pit_state2 pit{};
    for (unsigned i = 0; i < devices::pit::k_channels; ++i) pit.channels[i] = to_kvm(state.channels[i], now, step);
    if (state.system_control & devices::pit::k_sc_speaker) pit.flags |= k_speaker_on;
    if (!state.irq0_connected) pit.flags |= KVM_PIT_FLAGS_HPET_LEGACY;
    return pit;
}

} // namespace coffer::vmm::kvm
